"""The API of our own: `/v1/…`."""
