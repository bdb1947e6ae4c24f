"""Small Hugging Face tokenizers, made on the spot: one for each way that models differ in."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as cuts
from tokenizers.processors import TemplateProcessing

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
CORPUS = [
    "the user asks the assistant a question and the assistant answers it",
    "system prompt: you are a helpful assistant that writes short answers",
    "def answer(question):\n    return 42  # the answer\n\n",
    "straße, café, naïve; 日本語 and emoji 🙂🙂 are spelled in bytes",
    '{"name": "search", "arguments": {"query": "weather in Paris"}}',
] * 4

CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
+ '<|im_end|>' + '\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Headers in control tokens of their own, the date in the system prompt, trimmed content.
HEADERS = """\
{{- bos_token }}
{%- macro header(role) %}{{ '<|header|>' + role + '<|header_end|>\n\n' }}{% endmacro %}
{{- header('system') }}Today Date: {{ strftime_now('%d %b %Y') }}{{ '\n\n' }}
{%- if tools %}{{ tools | tojson(indent=4) }}{{ '\n\n' }}{% endif %}
{%- if messages[0].role == 'system' %}
    {{- messages[0].content | trim }}
    {%- set messages = messages[1:] %}
{%- endif %}{{ '<|eot|>' }}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('only one tool call at a time') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- header('assistant') + '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{ '}<|eot|>' }}
    {%- else %}
        {{- header('ipython' if message.role == 'tool' else message.role) }}
        {{- message.content | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ header('assistant') }}{% endif %}"""

# Control tokens that are not special, reasoning that is dropped, tool results inside a user turn.
THINKING = """\
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}
    {{- 'Call tools inside <tool_call></tool_call>.\n<tools>' }}
    {%- for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- if '</think>' in content and not loop.last %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {%- if call.function.arguments is string %}
                {{- call.function.arguments }}
            {%- else %}
                {{- call.function.arguments | tojson }}
            {%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content }}
        {{- '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# No role tokens at all, the system prompt inside the first user message, strict alternation.
INSTRUCT = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant/user/...') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (system if loop.first and system is defined else '') }}
        {{- message.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}"""

# Control tokens that swallow the white space behind them.
SWALLOWING = """\
{%- for message in messages %}
    {{- '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

# The system prompt in the user's turn, and text with tokens of its own.
TURNS = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set first = messages[0].content + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\n' }}
    {{- (first if loop.first and first is defined else '') + message.content | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""


def chatml(folder: Path) -> Path:
    """Byte-level BPE, ChatML."""
    backend = _byte_level()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return _written(backend, folder, CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>")


def headers(folder: Path) -> Path:
    """Byte-level BPE, role names between control tokens, a date."""
    backend = _byte_level()
    names = ["<|begin|>", "<|end_of_text|>", "<|header|>", "<|header_end|>", "<|eot|>"]
    backend.add_special_tokens(names)
    return _written(backend, folder, HEADERS, bos_token="<|begin|>", eos_token="<|eot|>")


def thinking(folder: Path) -> Path:
    """Byte-level BPE with NFC; <think> and <tool_call> are added tokens, not special ones."""
    backend = _byte_level()
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    plain = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|fim_prefix|>")
    responses = ("<tool_response>", "</tool_response>")
    backend.add_tokens([_added(text) for text in (*plain, *responses)])
    return _written(backend, folder, THINKING, eos_token="<|im_end|>")


def instruct(folder: Path) -> Path:
    """SentencePiece style with bytes to fall back to; a space before the very first text only."""
    backend = Tokenizer(_with_bytes(prefix=SPACE))
    backend.pre_tokenizer = cuts.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = _sentencepiece_decoder(decoders.Strip(" ", 1, 0))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    begins = [("<s>", backend.token_to_id("<s>"))]
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=begins)
    return _written(backend, folder, INSTRUCT, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def swallowing(folder: Path) -> Path:
    """SentencePiece style with a space before every text; control tokens swallow white space."""
    backend = Tokenizer(_with_bytes(prefix=SPACE))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    backend.decoder = _sentencepiece_decoder(decoders.Strip(" ", 1, 0))
    backend.add_special_tokens(["<unk>", "<s>", "<|endoftext|>"])
    roles = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
    backend.add_special_tokens([AddedToken(text, rstrip=True, special=True) for text in roles])
    return _written(backend, folder, SWALLOWING, eos_token="<|end|>", unk_token="<unk>")


def turns(folder: Path) -> Path:
    """SentencePiece style without any space put before; white space and HTML tags are added."""
    backend = Tokenizer(_with_bytes())
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = _sentencepiece_decoder()
    backend.add_special_tokens(["<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"])
    backend.add_tokens(
        [_added(text) for text in ("\n\n", "\n\n\n", "<table>", "</table>", "agent")]
    )
    return _written(backend, folder, TURNS, bos_token="<bos>", eos_token="<eos>")


MADE = {made.__name__: made for made in (chatml, headers, thinking, instruct, swallowing, turns)}


def word_level(folder: Path) -> Path:
    """A vocabulary of whole words, without a chat template and without a decoder of bytes."""
    words = ["<unk>", "<s>", "hello", "world", "User", ":", "Assistant", "."]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = cuts.Whitespace()
    backend.add_special_tokens(["<unk>", "<s>"])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _written(backend, folder, None, bos_token="<s>", unk_token="<unk>")


def _byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = cuts.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=cuts.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _with_bytes(prefix: str = "") -> models.BPE:
    """A trained BPE whose vocabulary also has <unk> and a token for each byte."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = cuts.Split(Regex("\n"), "isolated")
    texts = [prefix + text.replace(" ", SPACE) for text in CORPUS]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    state = json.loads(trained.model.__getstate__())
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    names: Sequence[str] = ["<unk>", "<s>", "</s>", *bytes_, *state["vocab"]]
    merges = [tuple(pair) for pair in state["merges"]]
    vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def _sentencepiece_decoder(*last: decoders.Decoder) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    return decoders.Sequence(steps)


def _added(text: str) -> AddedToken:
    return AddedToken(text, special=False, normalized=False)


def _written(backend: Tokenizer, folder: Path, template: str | None, **named: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config: Mapping[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **({"chat_template": template} if template else {}),
        **named,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
