#!/usr/bin/env python3
"""Records what llama.cpp makes of hostile texts, for crates/engine/tests/data/tokenizer.

    python tools/make_tokenizer_fixtures.py MODELS [GEMMA4_FIXTURE]

MODELS is a folder with SmolLM2-135M-Instruct.Q4_1.gguf and gemma-3-270m-q4_k_m.gguf; GEMMA4_FIXTURE a GGUF file whose
`tokenizer.ggml.model` is `gemma4` (its vocabulary is kept, without its tensors).
Needs: llama-cpp-python (0.3.36), gguf (0.19.0), numpy. The files that it writes are committed.
"""

import ctypes
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/engine/tests/data/tokenizer"
FIXTURES = ROOT / "crates/engine/tests/fixtures"

# A text is a string, {"hex": bytes} where it is not UTF-8, or {"repeat": string, "times": n}.
TEXTS = [
    "",
    " ",
    "a",
    " a",
    "  two leading spaces",
    "trailing spaces  ",
    "Hello world",
    "hello   world\n\n  x",
    "It's they'll WE'RE I'd you've 'tis rock'n'roll",
    "0 12 345 6789 12345678901234567890 3.14159 1,000,000 ½ ² Ⅷ ٣٤٥ ४५६",
    "line\r\nline\r\n\r\n\r\rline\n\r",
    "\t\ttabs\tin\t \t between\t",
    " \n \n\n  \n",
    "\u00a0no\u00a0break\u3000ideographic\u2003em\u2009thin\u200bzero\ufeffbom",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 ❤️‍🔥 🤷🏿‍♀️",
    "😀😃😄😁😆😅😂🤣",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "שלום עולם",
    "你好,世界。中文测试!这是一个很长的句子,没有空格。",
    "日本語のテスト。カタカナ、ひらがな、漢字。",
    "한국어 테스트입니다.",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "नमस्ते दुनिया, यह एक परीक्षण है।",
    "русский язык, ПРИВЕТ мир, мирПРИВЕТ",
    "Ελληνικά και Türkçe İıŞş Straße ſ'ſ",
    "e\u0301 a\u0300\u0323 n\u0303o Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f",
    "naïve café Größe Ångström ﬁ ﬀ",
    "nul\x00inside\x00\x00",
    "\x01\x02\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "private \ue000\ue001\uf8ff use \U000f0000\U0010fffd",
    {"hex": "ff"},
    {"hex": "61ff62fe63"},
    {"hex": "e28261c3"},
    {"hex": "f09f98"},
    {"hex": "c080e08080"},
    {"hex": "eda08062"},
    {"hex": "80bf20808020bf"},
    {"hex": "20c328a0a1e228a1e28228f0288cbc"},
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "<bos><eos><pad><unk></s><s><|endoftext|><0x0A><unused1>",
    "a<|im_end|>b <|im_end|> <|im_end|><|im_start|>",
    "x <end_of_turn> y<end_of_turn>\n\n\n z",
    "<|im_end<|im_end|>|><|im_<end_of_turn>",
    "<b>bold</b><table><tr><td>1</td></tr></table><h1>",
    "<repo_name>r<file_sep>f<jupyter_start>",
    "def f(x):\n\treturn x ** 2  # square\n\n\nclass A:\n    def __init__(self):\n        self.x = {'a': [1, 2, 3]}\n",
    "for (int i = 0; i < n; ++i) { a[i] <<= 2; } // done\r\n#include <stdio.h>\r\n",
    "SELECT * FROM t WHERE a<>'b' AND c>=1.5e-10;--x",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\Users\\x\\y.txt",
    "camelCaseHTTPServer snake_case_name kebab-case-name SCREAMING_SNAKE",
    "!!!???...---===+++***///\\\\\\|||~~~^^^%%%$$$###@@@",
    "mixed русский中文العربية日本語한국어ไทยעברית text",
    "\u2581 \u2581\u2581 lower block \u0120\u010a",
    "\u202eright to left\u202c \u2066isolate\u2069",
    "A" * 200,
    "ab" * 150,
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    {"repeat": " ", "times": 10000},
    {"repeat": "\n", "times": 3000},
    {"repeat": "a ", "times": 2000},
    {"repeat": "0", "times": 5000},
    {"repeat": "=", "times": 3000},
    {"repeat": " \n", "times": 100},
    {"repeat": "👩‍👧", "times": 30},
]

# Short texts for the pre-tokenizers: every part of each is a token of a made-up vocabulary, so tokens are pieces.
SPLITS = [
    "a  b", "  a ", "a\n\nb", "a \n b", "\r\n\r\n", " \r\n x", "\t\tx", "  \n\n  \n", "\n \nx",
    "12345", "1234567 89", "x12y", "1a2", "it's we'LL", "I'D 'T's", "x'ſ 's", "HTTPServer", "helloWORLD", "aBcDE fG",
    "мирПРИВЕТ", "ПриветМир", "ßẞ Größe", "ǅǆ Ⅷⅷ", "中文。日本", "漢字かな12", "中a文 b", "한국어 ab", "ไทยภาษา",
    "नमस्ते", "e\u0301a\u0300 \u0301", "a\u00a0b", "a\u3000 b", "x\u2003\u2003y", "\u0085x\u200b x", "\x0b\x0c x",
    "!!??..", " !! a", "a.b,c", "$x+<=>^~|`", "foo_bar(x)", "/pa/to\n/", "//\n\n/ \n", "«quo»te", "…।۔،、a", "(a|b) !c",
    "😀👍🏽", "👩‍👧", "½²③٣४", "\x00\x01a", "\ue000x", "აბ Აბ", "مرحبا بك", "a   \n   b", "x\r\r\ny", "#a &b 'c", "-a_b",
    "'re'VE x", "É Éa aÉ", "ªº ʰ", "°C µm",
]


def pre_tokenizers():
    """The names in the Rust table, so that none goes unrecorded."""
    source = (ROOT / "crates/engine/src/tokenizer/pre_tokenizer.rs").read_text()
    table = source[source.index("const RULES") :]
    table = table[: table.index("\n];")]
    names = []
    for group in re.findall(r'rule\(\s*"([^"]+)"', table):
        names += group.split(" ")
    return names


def as_bytes(text):
    if isinstance(text, str):
        return text.encode()
    return bytes.fromhex(text["hex"]) if "hex" in text else (text["repeat"] * text["times"]).encode()


def runs(ids):
    """The ids, with [id, n] for n > 3 equal ones."""
    out, at = [], 0
    while at < len(ids):
        n = 1
        while at + n < len(ids) and ids[at + n] == ids[at]:
            n += 1
        out += [[ids[at], n]] if n > 3 else [ids[at]] * n
        at += n
    return out


def load(path):
    return llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)


def fnv(state, data):
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 % (1 << 64)
    return state


def record(path):
    """What llama.cpp makes of all texts, with and without special tokens, and a hash of what its tokens stand for."""
    model = load(path)
    vocab = llama_cpp.llama_model_get_vocab(model._model.model)
    count = llama_cpp.llama_vocab_n_tokens(vocab)
    buffer = ctypes.create_string_buffer(4096)
    state = 0xCBF29CE484222325
    for token in range(count):
        n = llama_cpp.llama_token_to_piece(vocab, token, buffer, 4096, 0, True)
        assert n >= 0
        state = fnv(state, buffer.raw[:n] + b"\xff\x00")
    some = lambda token: None if token < 0 else token
    return {
        "tokens": count,
        "bos": some(llama_cpp.llama_vocab_bos(vocab)),
        "eos": some(llama_cpp.llama_vocab_eos(vocab)),
        "ends": [t for t in range(count) if llama_cpp.llama_vocab_is_eog(vocab, t)],
        "with_bos": model.tokenize(b"Hello", add_bos=True, special=False),
        "bytes_hash": f"{state:016x}",
        "plain": [runs(model.tokenize(as_bytes(t), add_bos=False, special=False)) for t in TEXTS],
        "parse": [runs(model.tokenize(as_bytes(t), add_bos=False, special=True)) for t in TEXTS],
    }


def write_json(name, value):
    """One case a line."""
    lines = ["{"]
    for i, (key, v) in enumerate(value.items()):
        comma = "," if i + 1 < len(value) else ""
        if isinstance(v, list) and key in ("plain", "parse", "texts"):
            rows = ",\n  ".join(json.dumps(x, separators=(",", ":")) for x in v)
            lines.append(f' "{key}": [\n  {rows}\n ]{comma}')
        else:
            lines.append(f' "{key}": {json.dumps(v, separators=(",", ":"))}{comma}')
    (OUT / name).write_text("\n".join(lines + ["}"]) + "\n")


def byte_alphabet():
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in own]
    return {**{b: chr(b) for b in own}, **{b: chr(0x100 + i) for i, b in enumerate(others)}}


def splitting_vocabulary():
    """Every part of every text is a token, and every pair of tokens that makes a token is a merge."""
    alphabet = byte_alphabet()
    tokens, merges = {alphabet[b]: None for b in range(256)}, {}
    for text in SPLITS:
        word = "".join(alphabet[b] for b in text.encode())
        for length in range(2, len(word) + 1):
            for start in range(len(word) - length + 1):
                part = word[start : start + length]
                tokens[part] = None
                merges.update({f"{part[:k]} {part[k:]}": None for k in range(1, length)})
    return list(tokens), list(merges)


def write_vocabulary(path, model, pre, tokens, **more):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    for key, value in more.items():
        getattr(writer, "add_" + key)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def record_splits(folder):
    """The lengths in bytes of the pieces of each text, by pre-tokenizer; equal rows are named once."""
    tokens, merges = splitting_vocabulary()
    back = {c: b for b, c in byte_alphabet().items()}
    names_of, escaped = {}, ["gemma4", "sarvam-moe"]
    for name in pre_tokenizers():
        if name in escaped:
            continue
        path = os.path.join(folder, "split.gguf")
        write_vocabulary(path, "gpt2", name, tokens, token_merges=merges, bos_token_id=0, eos_token_id=0)
        try:
            model = load(path)
        except ValueError:
            print(f"llama.cpp does not know the pre-tokenizer {name}", file=sys.stderr)
            continue
        rows = []
        for text in SPLITS:
            ids = model.tokenize(text.encode(), add_bos=False, special=False)
            assert bytes(back[c] for i in ids for c in tokens[i]) == text.encode()
            rows.append([len(tokens[i]) for i in ids])
        names_of.setdefault(json.dumps(rows), []).append(name)
    lines = [" " + json.dumps(" ".join(names)) + ": " + rows.replace(" ", "") for rows, names in names_of.items()]
    texts = json.dumps(SPLITS, ensure_ascii=True)
    (OUT / "splits.json").write_text('{\n "texts": ' + texts + ",\n" + ",\n".join(lines) + "\n}\n")


def write_spm(path, add_space):
    """A small SentencePiece vocabulary: equal scores, pieces that need pieces that do not exist, no `é` but its bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "<turn>", "\n\n", "<u>", "  "]
    kinds = [2, 3, 3, *[6] * 256, 3, 4, 4, 4]
    words = """▁ e t a o i n s h r l d u \n ▁▁ ▁▁▁▁ ▁t ▁th ▁the he the er in ▁in ing an ▁an and ▁and ▁a ell hell ▁hell hello ▁hello
        wor ▁wor orld ▁world ld ll lo o▁ 1 2 12 123 中 文 中文 中文中 ab aba abab b ba aa aaa aaaa Hello ▁Hello ▁H H w W <u <turn
        👩 👧 \u200d Ġ ' 's it ▁it's""".split(" ")
    words = [w for w in (w.strip("\t ") for w in " ".join(words).replace("\n        ", " ").split(" ")) if w]
    words = list(dict.fromkeys(words))
    scores = [0.0] * len(pieces) + [-float(i // 2) for i in range(len(words))]
    kinds += [1] * len(words)
    more = dict(token_scores=scores, token_types=kinds, bos_token_id=1, eos_token_id=2, unk_token_id=0)
    write_vocabulary(path, "llama", None, pieces + words, **more, add_space_prefix=add_space)


def copy_vocabulary(source, path):
    """The tokenizer's metadata of a file, without its tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("tokenizer.ggml."):
            value, kind = field.contents(), field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, value, kind, sub)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def main():
    models = Path(sys.argv[1])
    OUT.mkdir(parents=True, exist_ok=True)
    write_json("texts.json", {"texts": TEXTS})
    for add_space in (True, False):
        name = "spm" if add_space else "spm_no_prefix"
        write_spm(OUT / f"{name}.gguf", add_space)
        write_json(f"{name}.json", record(OUT / f"{name}.gguf"))
    if len(sys.argv) > 2:
        copy_vocabulary(sys.argv[2], OUT / "gemma4.gguf")
    if (OUT / "gemma4.gguf").exists():
        write_json("gemma4.json", record(OUT / "gemma4.gguf"))
    # The tiny llama, qwen2 and qwen3 have one and the same vocabulary.
    write_json("fixtures.json", record(FIXTURES / "llama/model.gguf"))
    write_json("smollm2.json", record(models / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    write_json("gemma3.json", record(models / "gemma-3-270m-q4_k_m.gguf"))
    with tempfile.TemporaryDirectory() as folder:
        record_splits(folder)


if __name__ == "__main__":
    main()
