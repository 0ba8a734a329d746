"""A Flask application. In this directory run ``python http_server.py --app flask_app:app``."""

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return f"Hello, {request.args.get('name', 'world')}!\n"
