"""Work that ends: training runs, sweeps, batch jobs, and the client that submits them."""
