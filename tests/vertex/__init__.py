"""A Vertex AI on this machine: `.venv-deploy/bin/python -m tests.vertex --help`."""
