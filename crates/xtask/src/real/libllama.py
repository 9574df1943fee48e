# What llama.cpp's C library answers, on its CPU backend: python3 libllama.py REQUEST.json, which has {library, threads,
# quantize: [{from, to, type}], chats, template, model, prompts: [[id]], tokens, page: [id]}; all but library may be
# absent. The last line of the output is JSON: {chats: [text], greedy: [[id]], nll: [number]}. The library is called
# directly because its Node package makes a map of the whole vocabulary for each token. Types of files and the first
# fields of the parameters are those of include/llama.h, and are compared with the library's defaults.
import array
import ctypes
import json
import math
import os
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    request = json.load(file)
library = ctypes.CDLL(request["library"])
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_1": 9, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17,
         "q6_k": 18, "iq4_nl": 25}


class Parameters(ctypes.Structure):
    _fields_ = [("threads", ctypes.c_int32), ("type", ctypes.c_int32), ("output_type", ctypes.c_int32),
                ("embedding_type", ctypes.c_int32), ("allow_requantize", ctypes.c_bool),
                ("quantize_output", ctypes.c_bool), ("only_copy", ctypes.c_bool), ("pure", ctypes.c_bool),
                ("rest", ctypes.c_uint8 * 236)]


class Message(ctypes.Structure):
    _fields_ = [("role", ctypes.c_char_p), ("content", ctypes.c_char_p)]


class ContextParameters(ctypes.Structure):
    _fields_ = [("context", ctypes.c_uint32), ("batch", ctypes.c_uint32), ("micro_batch", ctypes.c_uint32),
                ("sequences", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 496)]


class ModelParameters(ctypes.Structure):
    _fields_ = [("rest", ctypes.c_uint8 * 512)]


class Batch(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), ("tokens", ctypes.POINTER(ctypes.c_int32)), ("embeddings", ctypes.c_void_p),
                ("positions", ctypes.POINTER(ctypes.c_int32)), ("sequence_counts", ctypes.POINTER(ctypes.c_int32)),
                ("sequences", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8))]


def answered(name, kind, *arguments):
    call = getattr(library, name)
    call.restype = kind
    return call(*arguments)


class Model:
    """A model and a context with a cache of `positions`."""

    def __init__(self, path, positions):
        ggml = next(name for name in os.listdir(os.path.dirname(request["library"])) if name.startswith("libggml.v"))
        backends = ctypes.CDLL(os.path.join(os.path.dirname(request["library"]), ggml))
        backends.ggml_backend_load_all_from_path(os.path.dirname(request["library"]).encode())
        parameters = answered("llama_model_default_params", ModelParameters)
        self.model = answered("llama_model_load_from_file", ctypes.c_void_p, path.encode(), parameters)
        if not self.model:
            sys.exit(f"llama.cpp could not open {path}")
        parameters = answered("llama_context_default_params", ContextParameters)
        known = (parameters.context, parameters.batch, parameters.micro_batch, parameters.sequences)
        if known != (512, 2048, 512, 1):
            sys.exit(f"llama.cpp's parameters of a context have another layout: {known}")
        parameters.context = parameters.batch = positions
        model = ctypes.c_void_p(self.model)
        self.context = ctypes.c_void_p(answered("llama_init_from_model", ctypes.c_void_p, model, parameters))
        threads = request["threads"]
        answered("llama_set_n_threads", None, self.context, threads, threads)
        vocabulary = ctypes.c_void_p(answered("llama_model_get_vocab", ctypes.c_void_p, model))
        self.vocabulary = answered("llama_vocab_n_tokens", ctypes.c_int32, vocabulary)
        self.batch = answered("llama_batch_init", Batch, positions, 0, 1)

    def clear(self):
        memory = ctypes.c_void_p(answered("llama_get_memory", ctypes.c_void_p, self.context))
        answered("llama_memory_clear", None, memory, ctypes.c_bool(True))

    def read(self, ids, start, every):
        """Reads ids from position `start` on; the logits of the last, or of every token, are kept."""
        self.batch.count = len(ids)
        for i, token in enumerate(ids):
            self.batch.tokens[i], self.batch.positions[i] = token, start + i
            self.batch.sequence_counts[i], self.batch.sequences[i][0] = 1, 0
            self.batch.logits[i] = every or i == len(ids) - 1
        code = answered("llama_decode", ctypes.c_int32, self.context, self.batch)
        if code != 0:
            sys.exit(f"llama.cpp could not compute: {code}")

    def logits(self, index):
        numbers = answered("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), self.context, index)
        found = array.array("f")
        found.frombytes(ctypes.string_at(numbers, 4 * self.vocabulary))
        return found

    def greedy(self, prompt, count):
        self.clear()
        found, new, start = [], prompt, 0
        for _ in range(count):
            self.read(new, start, False)
            logits = self.logits(-1)
            start += len(new)
            new = [logits.index(max(logits))]
            found += new
        return found

    def nll(self, page):
        """The negative log-probability of each token from the second on."""
        self.clear()
        self.read(page[:-1], 0, True)
        found = []
        for i, token in enumerate(page[1:]):
            logits = self.logits(i)
            most = max(logits)
            found.append(math.log(sum(math.exp(x - most) for x in logits)) + most - logits[token])
        return found


def quantize(source, target, kind):
    defaults = library.llama_model_quantize_default_params
    defaults.restype = Parameters
    parameters = defaults()
    known = (parameters.type, parameters.quantize_output, parameters.allow_requantize, parameters.pure)
    if known != (TYPES["q8_0"], True, False, False):
        sys.exit(f"llama.cpp's parameters have another layout: {known}")
    parameters.type, parameters.allow_requantize = TYPES[kind], True
    call = library.llama_model_quantize
    call.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
    code = call(source.encode(), target.encode(), ctypes.byref(parameters))
    if code != 0:
        sys.exit(f"llama.cpp could not quantize {source} to {kind}: {code}")


def chat(messages, template):
    array = (Message * len(messages))(*[Message(m["role"].encode(), m["content"].encode()) for m in messages])
    call = library.llama_chat_apply_template
    call.argtypes = [ctypes.c_char_p, ctypes.POINTER(Message), ctypes.c_size_t, ctypes.c_bool, ctypes.c_char_p,
                     ctypes.c_int32]
    buffer = ctypes.create_string_buffer(1 << 16)
    length = call(template.encode(), array, len(messages), True, buffer, len(buffer))
    if not 0 <= length <= len(buffer):
        sys.exit(f"llama.cpp could not render with its template {template}: {length}")
    return buffer.raw[:length].decode()


for job in request.get("quantize", []):
    quantize(job["from"], job["to"], job["type"])
answer = {"chats": [chat(messages, request["template"]) for messages in request.get("chats", [])]}
if "model" in request:
    prompts, page, tokens = request["prompts"], request["page"], request["tokens"]
    model = Model(request["model"], max([len(page)] + [len(prompt) + tokens for prompt in prompts]) + 8)
    answer["greedy"] = [model.greedy(prompt, tokens) for prompt in prompts]
    answer["nll"] = model.nll(page)
print(json.dumps(answer))
