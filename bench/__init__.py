"""The benchmark harness: `python -m bench`. `README.md` beside this file explains the method."""
