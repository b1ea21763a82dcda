"""What runs inside the sandbox: plain Python files that import nothing of Mango, since the child sees nothing of it."""

__all__: list[str] = []
