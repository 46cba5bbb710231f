"""Hostile inputs, made by damaging valid ones, and the law that every command keeps on them.

`python -m tests.attacks` (or `scripts/fuzz`) hunts for inputs that break the law; see docs/fuzzing.md.

| module | what it does |
|---|---|
| `seeds.py` | valid files of every reader |
| `containers.py` | GGUF, safetensors and SentencePiece files taken apart and put together again, right or wrong |
| `damage.py` | what is done to values, texts, trees, bytes and files |
| `kinds.py` | the kinds of cases: which files, damaged how, and which command reads them |
| `command_line.py` | commands and options as the program itself declares them |
| `case.py` | one input and one command, and how they are kept in a file |
| `law.py` | runs a case in this process and says how it broke the law |
| `judge.py` | llama.cpp's opinion, asked for in a process of its own |
| `worker.py`, `hunt.py` | processes that run cases, what watches over them, and the summary |
"""
