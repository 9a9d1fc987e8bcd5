"""Any server with an OpenAI-compatible interface, attached to or started by the harness."""
