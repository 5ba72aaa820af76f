"""An HTTP server with OpenAI's interface, for one model. It needs the extra `serve`."""
