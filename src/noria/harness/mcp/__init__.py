"""The Model Context Protocol, both ways: servers' tools as ours (`McpClient`), and ours offered to others (`serve`)."""
