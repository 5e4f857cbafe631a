"""A Google Cloud Storage on this machine: `python -m tests.gcs --help`."""
