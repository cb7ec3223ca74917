"""The server of `raddraft serve`: OpenAI's chat completions in front of this project's reader, prompts and decoding."""
