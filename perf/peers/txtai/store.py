"""Writes the application's configuration and its index, by the class that the API itself uses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml
from txtai.app import Application


def main() -> None:
    store = Path(os.environ["STORE"])
    settings = yaml.safe_load(Path(__file__).with_name("app.yml").read_text(encoding="utf-8"))
    settings["path"] = str(store / "index")
    settings["embeddings"]["path"] = os.environ["MODEL"]
    (store / "app.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    with open(os.environ["PASSAGES"], encoding="utf-8") as lines:
        passages = [json.loads(line) for line in lines]
    application = Application(settings)
    application.add([{"id": each["id"], "text": each["text"]} for each in passages])
    application.index()


if __name__ == "__main__":
    main()
