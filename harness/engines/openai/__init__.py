"""The engine `openai`: a client of servers with OpenAI's HTTP interface, and the start of such servers."""
