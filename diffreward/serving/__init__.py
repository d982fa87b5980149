"""Rewards in another process or on another machine: what travels, and the server."""
