// What llama.cpp makes of the header of a model. Compiled and asked by make_architecture_models.py against the sources
// and libraries of one build of llama.cpp, whose internal headers (src/llama-model.h, src/llama-hparams.h) it reads.
//
// architecture_models LIBRARIES list: the names of all architectures, a line each.
// architecture_models LIBRARIES: reads questions from standard input and answers each with a line of JSON:
//   wanted PATH   the file has metadata only: which tensors would llama.cpp look for?
//   open PATH     the file has tensors, too: does it load?
//   load PATH     and does it compute?

#include "ggml-backend.h"
#include "ggml.h"
#include "gguf.h"
#include "llama-arch.h"
#include "llama-hparams.h"
#include "llama-model.h"
#include "llama.h"

#include <cstdint>
#include <cstdio>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

static std::string complaints;

static void listen(ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR) {
        complaints += text;
    }
}

static void leave(ggml_tensor *, void *) {}

static std::string quoted(const std::string & text) {
    std::string out = "\"";
    for (char c : text) {
        if ((unsigned char) c < ' ') {
            out += ' ';
        } else if (c == '"' || c == '\\') {
            out += std::string("\\") + c;
        } else {
            out += c;
        }
    }
    return out + "\"";
}

// a letter for each layer: 1 for yes, 0 for no
static std::string bits(int layers, const std::function<bool(int)> & of) {
    std::string out;
    for (int i = 0; i < layers; i++) {
        out += of(i) ? '1' : '0';
    }
    return out;
}

// of the hyperparameters: headers with the same one mean the same
static uint64_t digest(const llama_hparams & hparams) {
    uint64_t found = 1469598103934665603ull;  // FNV-1a
    const auto * bytes = (const unsigned char *) &hparams;
    for (size_t i = 0; i < sizeof(hparams); i++) {
        found = (found ^ bytes[i]) * 1099511628211ull;
    }
    return found;
}

// 0 when the model computes something for a few tokens
static int computed(llama_model * model) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 64;
    params.n_batch = params.n_ubatch = 32;
    params.n_threads = params.n_threads_batch = 1;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) {
        return -1;
    }
    std::vector<llama_token> tokens(12);
    for (int i = 0; i < 12; i++) {
        tokens[i] = 1 + (i * 7) % 100;
    }
    llama_batch batch = llama_batch_get_one(tokens.data(), tokens.size());
    int code = llama_model_has_encoder(model) ? llama_encode(context, batch) : llama_decode(context, batch);
    if (code == 0 && llama_model_has_encoder(model) && llama_model_has_decoder(model)) {
        llama_token first = 0;
        code = llama_decode(context, llama_batch_get_one(&first, 1));
    }
    llama_free(context);
    return code;
}

static void describe(llama_model * model, bool runs) {
    const llama_hparams & h = model->hparams;
    const int n = h.n_layer_all;
    printf("{\"ok\":true,\"digest\":\"%016llx-%d\"", (unsigned long long) digest(h), (int) model->type);
    printf(",\"kinds\":{\"n_layer\":%d,\"swa_type\":%d,\"dense_lead\":%d,\"n_no_rope_layer_step\":%d",
           (int) h.n_layer(), (int) h.swa_type, (int) h.n_layer_dense_lead, (int) h.n_no_rope_layer_step);
    printf(",\"n_moe_layer_step\":%d", (int) h.n_moe_layer_step);
    printf(",\"swa\":\"%s\"", bits(n, [&](int i) { return h.is_swa_impl[i] != 0; }).c_str());
    printf(",\"recr\":\"%s\"", bits(n, [&](int i) { return h.is_recr_impl[i] != 0; }).c_str());
    printf(",\"has_kv\":\"%s\"", bits(n, [&](int i) { return h.has_kv(i); }).c_str());
    printf(",\"has_rope\":\"%s\"}", bits(n, [&](int i) { return h.has_rope(i); }).c_str());
    printf(",\"runs\":%s,\"tensors\":{", runs ? "true" : "false");
    const char * separator = "";
    for (const auto & [name, tensor] : model->tensors_by_name) {
        printf("%s\"%s\":[\"%s\"", separator, name.c_str(), ggml_type_name(tensor->type));
        for (int d = ggml_n_dims(tensor) - 1; d >= 0; d--) {
            printf(",%lld", (long long) tensor->ne[d]);
        }
        printf("]");
        separator = ",";
    }
    printf("}}\n");
}

int main(int argc, char ** argv) {
    llama_log_set(listen, nullptr);
    ggml_backend_load_all_from_path(argv[1]);
    if (argc > 2) {
        for (auto arch : llm_arch_all()) {
            printf("%s\n", llm_arch_name(arch));
        }
        return 0;
    }
    std::string line;
    while (std::getline(std::cin, line)) {
        const size_t space = line.find(' ');
        const std::string question = line.substr(0, space);
        const std::string path = line.substr(space + 1);
        complaints.clear();
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers = 0;
        params.load_mtp = true;
        llama_model * model = nullptr;
        gguf_context * header = nullptr;
        if (question != "wanted") {
            model = llama_model_load_from_file(path.c_str(), params);
        } else if ((header = gguf_init_from_file(path.c_str(), {true, nullptr}))) {
            model = llama_model_init_from_user(header, leave, nullptr, params);
        }
        if (model) {
            describe(model, question == "load" && computed(model) == 0);
            llama_model_free(model);
        } else {
            printf("{\"ok\":false,\"words\":%s}\n", quoted(complaints).c_str());
        }
        fflush(stdout);
        if (header) {
            gguf_free(header);
        }
    }
}
