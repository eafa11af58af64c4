"""What `benchmarks/run.py` compares with: small scripts that run in environments of their own, without this project."""
