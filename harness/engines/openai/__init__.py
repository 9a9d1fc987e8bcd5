"""Any server of OpenAI's interface."""
