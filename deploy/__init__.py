"""The order: what is asked of Vertex AI, shown, sent, looked after; no TensorFlow."""
