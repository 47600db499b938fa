"""The protocol over gRPC with Triton's own client, on a real Serve: whole answers, parts, faults, keys."""

from __future__ import annotations

import queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving_kit import (
    WIDTH,
    ask_control,
    three_kinds,
    wait_for,
)
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

Fault = triton.InferenceServerException


@pytest.fixture(scope="module")
def address(local_ray, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("grpc")
    with three_kinds(local_ray, "grpc", tmp, max_body="16MiB"):
        yield local_ray.endpoints.gateway_grpc


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as made:
        yield made


def tensor(name, values, datatype):
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def rows(count):
    return np.arange(count * WIDTH, dtype=np.float32).reshape(count, WIDTH)


@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
def test_tritons_client_infers(client, packing):
    values = rows(300)
    result = client.infer(
        "scale", [tensor("x", values, "FP32")], request_id="g-1", model_version="1",
        outputs=[triton.InferRequestedOutput("y")], compression_algorithm=packing,
    )  # fmt: skip
    np.testing.assert_array_equal(result.as_numpy("y"), values * 2)
    said = result.get_response()
    assert (said.id, said.model_name, said.model_version) == ("g-1", "scale", "1")


def test_strings_integers_no_rows_and_many(client):
    values = np.array([[1.0, 2.0]])
    result = client.infer("odd", [tensor("x", values, "FP64")])
    np.testing.assert_array_equal(result.as_numpy("y"), values + 1)
    assert result.as_numpy("word").tolist() == ["café".encode()]
    assert result.as_numpy("pid").dtype == np.int64
    for count in (0, 100_000):
        answer = client.infer("scale", [tensor("x", rows(count), "FP32")])
        assert answer.as_numpy("y").shape == (count, WIDTH)


def test_typed_contents_are_read_too(address):
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.ModelInferRequest(model_name="scale")
        given = request.inputs.add(name="x", datatype="FP32", shape=[1, WIDTH])
        given.contents.fp32_contents.extend([1.0, 2.0, 3.0, 4.0])
        answer = stub.ModelInfer(request)
        assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [2, 4, 6, 8]
        del given.contents.fp32_contents[:]
        with pytest.raises(grpc.RpcError, match="0 values, the shape says 4"):
            stub.ModelInfer(request)


def test_what_is_served(client, address):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert client.is_model_ready("scale", "1")
    assert not client.is_model_ready("nobody")
    assert "binary_tensor_data" in client.get_server_metadata().extensions
    metadata = client.get_model_metadata("scale")
    assert (metadata.inputs[0].name, list(metadata.inputs[0].shape)) == ("x", [-1, WIDTH])
    assert client.get_model_config("scale").config.max_batch_size == 64
    index = {m.name: m.state for m in client.get_model_repository_index().models}
    assert index["scale"] == "READY"
    before = client.get_inference_statistics("scale").model_stats[0].inference_count
    client.infer("scale", [tensor("x", rows(3), "FP32")])
    after = client.get_inference_statistics("scale").model_stats[0].inference_count
    assert after == before + 3
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        assert health.Check(health_pb2.HealthCheckRequest()).status == serving
        assert health.Check(health_pb2.HealthCheckRequest(service="scale")).status == serving
        assert next(health.Watch(health_pb2.HealthCheckRequest(service="odd"))).status == serving
        with pytest.raises(grpc.RpcError, match="no such service"):
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))


@pytest.mark.parametrize(
    ("ask", "status", "says"),
    [
        (lambda c: c.infer("nobody", [tensor("x", rows(1), "FP32")]), "NOT_FOUND", "no service"),
        (lambda c: c.infer("scale", [tensor("z", rows(1), "FP32")]), "INVALID_ARGUMENT", "'z'"),
        (lambda c: c.infer("scale", [tensor("x", np.ones((1, 4)), "FP64")]),
         "INVALID_ARGUMENT", "is FP32"),
        (lambda c: c.infer("scale", [tensor("x", rows(1), "FP32")], model_version="9"),
         "NOT_FOUND", "not served"),
        (lambda c: c.infer("scale", [tensor("x", rows(1_500_000), "FP32")]),
         "RESOURCE_EXHAUSTED", "max_body"),
        (lambda c: c.infer("odd", [tensor("x", -np.ones((1, 2)), "FP64")]),
         "INTERNAL", "no negative numbers"),
        (lambda c: c.infer("words", [tensor("text_input", np.array([b"a"], object), "BYTES")]),
         "INVALID_ARGUMENT", "generate_stream"),
        (lambda c: c.load_model("scale"), "UNIMPLEMENTED", "Method not implemented"),
    ],
)  # fmt: skip
def test_faults(client, ask, status, says):
    with pytest.raises(Fault, match=says) as caught:
        ask(client)
    assert status in str(caught.value.status())


def streamed(client, *asked, **more):
    """Every response of one stream until all of `asked` (service, tensor, id) have had their last."""
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for service, given, name in asked:
        client.async_stream_infer(service, [given], request_id=name, **more)
    out, open_ids = [], {name for _, _, name in asked}
    while open_ids:
        result, error = answers.get(timeout=30)
        if error is not None:
            out.append(error)
            return out
        response = result.get_response()
        out.append((response.id, result))
        if response.parameters["triton_final_response"].bool_param:
            open_ids.discard(response.id)
    client.stop_stream()
    return out


def test_a_stream_of_requests_and_of_parts(client):
    words = np.array([b"to be or not"], dtype=object)
    seen = streamed(
        client, ("words", tensor("text_input", words, "BYTES"), "w"),
        ("scale", tensor("x", rows(2), "FP32"), "s"), enable_empty_final_response=True,
    )  # fmt: skip
    texts = [
        r.as_numpy("text_output")[0].decode()
        for name, r in seen
        if name == "w" and r.as_numpy("text_output") is not None
    ]
    assert texts == ["to", "be", "or", "not"]
    [scaled] = [r for name, r in seen if name == "s"]
    np.testing.assert_array_equal(scaled.as_numpy("y"), rows(2) * 2)


def test_a_fault_in_a_stream_is_told_in_it(client):
    [error] = streamed(client, ("scale", tensor("z", rows(1), "FP32"), "bad"))
    assert "no input 'z'" in str(error)


def test_a_cancelled_stream_ends_the_models_work(client, tmp_path):
    mark = tmp_path / "ended"
    given = tensor("text_input", np.array([f"forever {mark}".encode()], dtype=object), "BYTES")
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put(result))
    client.async_stream_infer("words", [given])
    assert answers.get(timeout=30).as_numpy("text_output")[0] == b"tick"
    client.stop_stream(cancel_requests=True)
    wait_for("the model was ended", mark.exists, 20)


def test_keys_come_as_metadata(client, local_ray):
    made = ask_control(local_ray, "create_key", name="g", scopes=["scale"])
    given = [tensor("x", rows(1), "FP32")]
    headers = {"authorization": f"Bearer {made['key']}"}
    try:

        def locked():
            try:
                client.infer("scale", given)
            except Fault as error:
                return "UNAUTHENTICATED" in str(error.status())
            return False

        wait_for("the gateway asks for keys", locked)
        assert client.infer("scale", given, headers=headers).as_numpy("y").shape == (1, WIDTH)
        with pytest.raises(Fault, match="not for service 'odd'"):
            client.infer("odd", [tensor("x", np.ones((1, 2)), "FP64")], headers=headers)
        with pytest.raises(Fault, match="asks for a key"):
            client.get_model_repository_index()
        assert client.is_server_live()
    finally:
        ask_control(local_ray, "revoke_key", key_id=made["key_id"])
        ask_control(local_ray, "delete_key", key_id=made["key_id"])

    def open_again():
        try:
            return client.infer("scale", given) is not None
        except Fault:
            return False

    wait_for("the gateway asks nobody again", open_again)
