//! Gemma 4, the dense text models (Google, 2026).
//!
//! Differs from `gemma3_text` in: norms that are stored whole; normalised values; heads of another size, with few
//! rotated pairs, in the layers that attend to all positions; last layers that read the keys and values of an earlier
//! layer of their kind; and embeddings of each token for every layer, which each layer gates and adds. In larger models
//! the keys of layers with full attention are also their values. Mixtures of experts are refused.

use std::sync::Arc;

use bayan_tensor::ops::{self, Columns, GateColumns, Projection};
use bayan_tensor::{Graph, Matrix, State, Tensor};
use serde_json::{Value, json};

use crate::cache::{Cache, LayerCache, LayerCacheSpec};
use crate::config::{Fields, Sizes};
use crate::decoder::{Decoder, StepInputs};
use crate::layers::{Embedding, GatedMlp, Linear, RmsNorm, RotaryTable};
use crate::load::Loader;
use crate::{LoadOptions, ModelError};

/// Every sixth layer attends to all positions; the others have a sliding window.
const PATTERN: usize = 6;

#[derive(Debug)]
struct SelfAttention {
    /// Projections of queries, keys and values, of queries and keys, or of queries alone.
    qkv_proj: Linear,
    o_proj: Linear,
    rotary: Arc<State>,
    q_norm: Arc<State>,
    /// `None` where the keys are another layer's.
    k_norm: Option<Arc<State>>,
    rope: ops::Rope,
    attention: ops::Attention,
    /// The layer whose keys and values this one reads.
    shares: Option<usize>,
}

/// The part of a layer that adds the embedding of the token for this layer.
#[derive(Debug)]
struct PerLayerInput {
    gate: Linear,
    projection: Linear,
    norm: RmsNorm,
    columns: GateColumns,
}

#[derive(Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: GatedMlp,
    post_feedforward_layernorm: RmsNorm,
    per_layer_input: Option<PerLayerInput>,
    /// Multiplies the layer's result \[1\].
    layer_scalar: Arc<State>,
}

/// The inputs of all layers: a table of embeddings, and a projection of the token's embedding.
#[derive(Debug)]
struct PerLayerInputs {
    embed_tokens: Embedding,
    model_projection: Linear,
    norm: RmsNorm,
}

/// The model.
#[derive(Debug)]
pub struct Gemma4Text {
    sizes: Sizes,
    embed_tokens: Embedding,
    per_layer_inputs: Option<PerLayerInputs>,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
    final_softcap: Option<f32>,
}

/// What the configuration says of one layer.
#[derive(Debug, Clone, PartialEq)]
struct Kind {
    window: Option<usize>,
    head_dim: usize,
    kv_heads: usize,
    values_are_keys: bool,
    shares: Option<usize>,
    intermediate_size: usize,
}

impl Gemma4Text {
    /// Loads the weights.
    ///
    /// # Errors
    /// A configuration or tensor that does not fit.
    pub async fn load(
        config: &Fields<'_>,
        options: &LoadOptions,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Decoder>, ModelError> {
        let whole = with_defaults(config);
        let config = &Fields(&whole);
        let sizes = Sizes::read(config, true)?;
        let kinds = kinds(config, &sizes)?;
        let final_softcap = match config.number("final_logit_softcapping", 0.0)? {
            0.0 => None,
            cap if cap > 0.0 => Some(cap as f32),
            _ => return config.refuse("final_logit_softcapping", "a positive number or null"),
        };
        let global = rotary(config, &sizes, &kinds, true, options, loader)?;
        let local = rotary(config, &sizes, &kinds, false, options, loader)?;
        let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let embed_tokens = Embedding::load(loader, "model.embed_tokens", &sizes, (d as f32).sqrt()).await?;
        let per_layer_size = per_layer_size(config)?;
        let per_layer_inputs = if per_layer_size > 0 {
            Some(per_layer_inputs(config, &sizes, per_layer_size, loader).await?)
        } else {
            None
        };
        let mut layers = Vec::with_capacity(sizes.num_hidden_layers);
        for (index, kind) in kinds.iter().enumerate() {
            let table = if kind.window.is_some() { &local } else { &global };
            layers.push(layer(config, &sizes, options, kind, table, loader, index, per_layer_size).await?);
        }
        let norm = RmsNorm::load(loader, "model.norm", d, eps).await?;
        let lm_head = crate::layers::lm_head(&sizes, &embed_tokens, loader).await?;
        Ok(Box::new(Gemma4Text { sizes, embed_tokens, per_layer_inputs, layers, norm, lm_head, final_softcap }))
    }
}

/// The configuration with transformers' defaults for the fields that it leaves out.
fn with_defaults(config: &Fields<'_>) -> Value {
    config.with_defaults(&json!({
        "head_dim": 256,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 512,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256,
    }))
}

/// Size of the embeddings for one layer; 0 if there are none.
fn per_layer_size(config: &Fields<'_>) -> Result<usize, ModelError> {
    match config.0.get("hidden_size_per_layer_input").and_then(Value::as_u64) {
        Some(0) => Ok(0),
        _ => Ok(config.optional_size("hidden_size_per_layer_input")?.unwrap_or(0)),
    }
}

/// The layers: windows, sizes of heads, and whose keys and values they read.
fn kinds(config: &Fields<'_>, sizes: &Sizes) -> Result<Vec<Kind>, ModelError> {
    if config.flag("enable_moe_block", false)? {
        return config.refuse("enable_moe_block", "false: mixtures of experts are not supported");
    }
    if config.text("use_bidirectional_attention") == Some("all") {
        return config.refuse("use_bidirectional_attention", "null or vision: tokens attend to earlier ones here");
    }
    let layers = sizes.num_hidden_layers;
    let mut windows = config.windows(layers, PATTERN)?;
    // transformers makes the last layer attend to all positions, whatever the list says.
    if let Some(last) = windows.last_mut() {
        *last = None;
    }
    let shared = match config.number("num_kv_shared_layers", 0.0)? {
        n if n >= 0.0 && n < layers as f64 && n.fract() == 0.0 => n as usize,
        _ => return config.refuse("num_kv_shared_layers", &format!("a whole number below the {layers} layers")),
    };
    let (own, double) = (layers - shared, config.flag("use_double_wide_mlp", false)?);
    let same_values = config.flag("attention_k_eq_v", false)?;
    let mut kinds: Vec<Kind> = Vec::with_capacity(layers);
    for (index, &window) in windows.iter().enumerate() {
        let (head_dim, kv_heads) = heads(config, sizes, index, window.is_none(), same_values)?;
        let shares = if index < own {
            None
        } else {
            match (0..own).rev().find(|&from| windows[from].is_some() == window.is_some()) {
                Some(from) => Some(from),
                None => {
                    return config.refuse("num_kv_shared_layers", "layers of both kinds among those with own keys");
                }
            }
        };
        let wide = shares.is_some() && double;
        let kind = Kind {
            window,
            head_dim,
            kv_heads,
            values_are_keys: same_values && window.is_none(),
            shares,
            intermediate_size: sizes.intermediate_size.saturating_mul(if wide { 2 } else { 1 }),
        };
        let alike = |other: &&Kind| other.window.is_some() == window.is_some();
        if kinds.iter().find(alike).is_some_and(|other| other.head_dim != head_dim || other.kv_heads != kv_heads) {
            return config.refuse("per_layer_config", "the same heads in all layers of a kind");
        }
        kinds.push(kind);
    }
    Ok(kinds)
}

/// Head size and number of key-value heads of a layer: of `per_layer_config` where there is one (as transformers 5.23
/// writes it), otherwise `global_head_dim` and `num_global_key_value_heads` for layers with full attention.
fn heads(
    config: &Fields<'_>,
    sizes: &Sizes,
    index: usize,
    full: bool,
    same_values: bool,
) -> Result<(usize, usize), ModelError> {
    let nothing = Value::Null;
    let (head_dim, kv_heads) = match config.get("per_layer_config") {
        Some(list) => {
            let own = Fields(list.get(index.to_string()).unwrap_or(&nothing));
            (own.optional_size("head_dim")?, own.optional_size("num_key_value_heads")?)
        }
        None if full => (
            Some(config.optional_size("global_head_dim")?.unwrap_or(512)),
            if same_values { config.optional_size("num_global_key_value_heads")? } else { None },
        ),
        None => (None, None),
    };
    let (head_dim, kv_heads) = (head_dim.unwrap_or(sizes.head_dim), kv_heads.unwrap_or(sizes.num_key_value_heads));
    if !head_dim.is_multiple_of(4) || head_dim > 1024 {
        return config.refuse("global_head_dim", "a multiple of 4 up to 1024");
    }
    if !sizes.num_attention_heads.is_multiple_of(kv_heads) {
        return config.refuse("num_global_key_value_heads", "a divisor of num_attention_heads");
    }
    Ok((head_dim, kv_heads))
}

/// The rotary table of the layers that attend to all positions (`full`), or of those with a sliding window.
fn rotary(
    config: &Fields<'_>,
    sizes: &Sizes,
    kinds: &[Kind],
    full: bool,
    options: &LoadOptions,
    loader: &Loader<'_>,
) -> Result<RotaryTable, ModelError> {
    let (name, default) = if full {
        ("full_attention", json!({"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}))
    } else {
        ("sliding_attention", json!({"rope_type": "default", "rope_theta": 1e4}))
    };
    let parameters = config.get("rope_parameters").and_then(|all| all.get(name)).unwrap_or(&default);
    let of_kind = kinds.iter().find(|kind| kind.window.is_none() == full);
    let sizes = Sizes { head_dim: of_kind.map_or(sizes.head_dim, |kind| kind.head_dim), ..sizes.clone() };
    crate::layers::rotary_table(&Fields(&json!({ "rope_parameters": parameters })), &sizes, options, loader)
}

/// Both parts of the inputs are divided by √2 before they are added, by factors of the table and of the norm; the
/// norm's epsilon is that of the projection before it is divided by √D.
async fn per_layer_inputs(
    config: &Fields<'_>,
    sizes: &Sizes,
    size: usize,
    loader: &mut Loader<'_>,
) -> Result<PerLayerInputs, ModelError> {
    let (d, layers) = (sizes.hidden_size, sizes.num_hidden_layers);
    let vocabulary = config.size("vocab_size_per_layer_input")?;
    if vocabulary < sizes.vocab_size {
        return config.refuse("vocab_size_per_layer_input", &format!("at least vocab_size, {}", sizes.vocab_size));
    }
    let width = size.saturating_mul(layers);
    let table = Sizes { vocab_size: vocabulary, hidden_size: width, ..sizes.clone() };
    let half = std::f32::consts::FRAC_1_SQRT_2;
    Ok(PerLayerInputs {
        embed_tokens: Embedding::load(loader, "model.embed_tokens_per_layer", &table, (size as f32).sqrt() * half)
            .await?,
        model_projection: Linear::load(loader, "model.", &[("per_layer_model_projection", width)], d, false).await?,
        norm: RmsNorm {
            weight: loader.scaled_vector("model.per_layer_projection_norm.weight", &[size], half).await?,
            eps: sizes.rms_norm_eps * d as f32,
        },
    })
}

async fn layer(
    config: &Fields<'_>,
    sizes: &Sizes,
    options: &LoadOptions,
    kind: &Kind,
    table: &RotaryTable,
    loader: &mut Loader<'_>,
    index: usize,
    per_layer_size: usize,
) -> Result<Layer, ModelError> {
    let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
    let activation = super::gemma::activation(config)?;
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let mlp_sizes = Sizes { intermediate_size: kind.intermediate_size, ..sizes.clone() };
    Ok(Layer {
        input_layernorm: RmsNorm::load(loader, &name("input_layernorm"), d, eps).await?,
        self_attn: attention(config, sizes, options, kind, table, loader, &name("self_attn.")).await?,
        post_attention_layernorm: RmsNorm::load(loader, &name("post_attention_layernorm"), d, eps).await?,
        pre_feedforward_layernorm: RmsNorm::load(loader, &name("pre_feedforward_layernorm"), d, eps).await?,
        mlp: GatedMlp::load(loader, &name("mlp."), &mlp_sizes, activation, false).await?,
        post_feedforward_layernorm: RmsNorm::load(loader, &name("post_feedforward_layernorm"), d, eps).await?,
        per_layer_input: if per_layer_size > 0 {
            let (prefix, size) = (name(""), per_layer_size);
            Some(PerLayerInput {
                gate: Linear::load(loader, &prefix, &[("per_layer_input_gate", size)], d, false).await?,
                projection: Linear::load(loader, &prefix, &[("per_layer_projection", d)], size, false).await?,
                norm: RmsNorm::load(loader, &name("post_per_layer_input_norm"), d, eps).await?,
                columns: GateColumns {
                    count: size,
                    activation,
                    x: Columns::from(index * size, size),
                    gate: Columns::from(0, size),
                },
            })
        } else {
            None
        },
        layer_scalar: loader.vector(&[(name("layer_scalar"), 1)], 0.0).await?,
    })
}

async fn attention(
    config: &Fields<'_>,
    sizes: &Sizes,
    options: &LoadOptions,
    kind: &Kind,
    table: &RotaryTable,
    loader: &mut Loader<'_>,
    prefix: &str,
) -> Result<SelfAttention, ModelError> {
    let Kind { window, head_dim, kv_heads, .. } = *kind;
    let (d, heads, bias) = (sizes.hidden_size, sizes.num_attention_heads, config.flag("attention_bias", false)?);
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let (projection, parts): (_, &[(&str, usize)]) = match kind {
        Kind { shares: Some(_), .. } => (Projection::Queries, &[("q_proj", q)]),
        Kind { values_are_keys: true, .. } => (Projection::ValuesAreKeys, &[("q_proj", q), ("k_proj", kv)]),
        _ => (Projection::Separate, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)]),
    };
    if kind.shares.is_some() {
        // Published checkpoints have them all the same.
        for part in ["k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias", "k_norm.weight", "v_norm.weight"] {
            loader.leave_out(format!("{prefix}{part}"));
        }
    }
    Ok(SelfAttention {
        qkv_proj: Linear::load(loader, prefix, parts, d, bias).await?,
        o_proj: Linear::load(loader, prefix, &[("o_proj", d)], q, bias).await?,
        rotary: table.state.clone(),
        q_norm: loader.vector(&[(format!("{prefix}q_norm.weight"), head_dim)], 0.0).await?,
        k_norm: match kind.shares {
            Some(_) => None,
            None => Some(loader.vector(&[(format!("{prefix}k_norm.weight"), head_dim)], 0.0).await?),
        },
        rope: ops::Rope {
            heads,
            kv_heads,
            head_dim,
            rotary_dim: table.dim,
            norm_eps: Some(sizes.rms_norm_eps),
            norm_values: true,
            projection,
            ..Default::default()
        },
        attention: ops::Attention {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0,
            window,
            context: options.context,
            ..Default::default()
        },
        shares: kind.shares,
    })
}

impl SelfAttention {
    fn cache_spec(&self) -> LayerCacheSpec {
        LayerCacheSpec {
            width: self.attention.kv_heads * self.attention.head_dim,
            window: self.attention.window,
            shares: self.shares,
            ..Default::default()
        }
    }

    /// x [T, D] to [T, D]; a layer that shares keys and values has the cache of the layer that computes them.
    fn forward(&self, graph: &mut Graph, x: Tensor, over: ops::Causality, cache: &LayerCache) -> Tensor {
        let qkv = self.qkv_proj.forward(graph, x);
        let (q, keys, values) = match &self.k_norm {
            Some(k_norm) => {
                let norms = Some((&self.q_norm, k_norm));
                let [q, k, v] = graph.rope(self.rope.clone(), qkv, over.positions, &self.rotary, norms);
                let caches = [&cache.keys, &cache.values];
                let (keys, values) = graph.append(cache.rows, k, v, over.positions, over.bases, caches);
                (q, keys, values)
            }
            None => (
                graph.rope_queries(self.rope.clone(), qkv, over.positions, &self.rotary, Some(&self.q_norm)),
                graph.state(&cache.keys),
                graph.state(&cache.values),
            ),
        };
        let attention = self.attention.over(cache.rows);
        let y = graph.attention(attention, q, keys, values, over); // [T, H, d]
        let y = graph.flatten(y);
        self.o_proj.forward(graph, y)
    }
}

impl PerLayerInput {
    /// x [T, D] to what is added to it; `inputs` [T, L P] are those of all layers.
    fn forward(&self, graph: &mut Graph, x: Tensor, inputs: Tensor) -> Tensor {
        let gate = self.gate.forward(graph, x); // [T, P]
        let y = graph.gate_columns(self.columns.clone(), inputs, gate);
        let y = self.projection.forward(graph, y);
        self.norm.forward(graph, y)
    }
}

impl PerLayerInputs {
    /// The inputs of all layers [T, L P], from the tokens and their embeddings x [T, D].
    fn forward(&self, graph: &mut Graph, tokens: Tensor, x: Tensor) -> Tensor {
        let looked_up = self.embed_tokens.forward(graph, tokens);
        let projected = self.model_projection.forward(graph, x);
        // The norm of each layer's P numbers.
        let projected = self.norm.forward(graph, projected);
        graph.add(looked_up, projected)
    }
}

impl Layer {
    fn forward(
        &self,
        graph: &mut Graph,
        x: Tensor,
        per_layer_inputs: Option<Tensor>,
        inputs: StepInputs,
        cache: &LayerCache,
    ) -> Tensor {
        let y = self.input_layernorm.forward(graph, x);
        let y = self.self_attn.forward(graph, y, inputs.causality, cache);
        let y = self.post_attention_layernorm.forward(graph, y);
        let x = graph.add(x, y);
        let y = self.pre_feedforward_layernorm.forward(graph, x);
        let y = self.mlp.forward(graph, y);
        let y = self.post_feedforward_layernorm.forward(graph, y);
        let mut x = graph.add(x, y);
        if let (Some(part), Some(inputs)) = (&self.per_layer_input, per_layer_inputs) {
            let y = part.forward(graph, x, inputs);
            x = graph.add(x, y);
        }
        graph.scale_columns(x, &self.layer_scalar)
    }

    fn linears(&self) -> Vec<&Linear> {
        let Layer { self_attn, mlp, per_layer_input, .. } = self;
        let mut all = vec![&self_attn.qkv_proj, &self_attn.o_proj, &mlp.gate_up_proj, &mlp.down_proj];
        all.extend(per_layer_input.iter().flat_map(|part| [&part.gate, &part.projection]));
        all
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let Layer { self_attn, mlp, per_layer_input, .. } = self;
        let mut all = vec![&mut self_attn.qkv_proj, &mut self_attn.o_proj, &mut mlp.gate_up_proj, &mut mlp.down_proj];
        all.extend(per_layer_input.iter_mut().flat_map(|part| [&mut part.gate, &mut part.projection]));
        all
    }
}

impl Decoder for Gemma4Text {
    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn cache_specs(&self) -> Vec<LayerCacheSpec> {
        self.layers.iter().map(|layer| layer.self_attn.cache_spec()).collect()
    }

    fn forward(&self, graph: &mut Graph, inputs: StepInputs, cache: &Cache) -> Tensor {
        let mut x = self.embed_tokens.forward(graph, inputs.tokens); // [T, D]
        let per_layer_inputs = self.per_layer_inputs.as_ref().map(|part| part.forward(graph, inputs.tokens, x));
        for (layer, cache) in self.layers.iter().zip(cache.layers()) {
            x = layer.forward(graph, x, per_layer_inputs, inputs, cache);
        }
        let x = graph.choose_rows(x, inputs.rows); // [R, D]
        let x = self.norm.forward(graph, x);
        let logits = self.lm_head.forward(graph, x); // [R, V]
        self.final_softcap.map_or(logits, |cap| graph.softcap(logits, cap))
    }

    fn matrices(&self) -> Vec<&Arc<Matrix>> {
        let inputs = self.per_layer_inputs.iter();
        let inputs = inputs.flat_map(|part| [&part.embed_tokens.weight, &part.model_projection.weight]);
        let layers = self.layers.iter().flat_map(Layer::linears).map(|linear| &linear.weight);
        [&self.embed_tokens.weight, &self.lm_head.weight].into_iter().chain(inputs).chain(layers).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let inputs = self.per_layer_inputs.iter_mut().map(|part| &mut part.model_projection);
        let layers = self.layers.iter_mut().flat_map(Layer::linears_mut);
        inputs.chain(layers).chain([&mut self.lm_head]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(more: Value) -> Result<Vec<Kind>, ModelError> {
        let mut config = json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32,
            "vocab_size": 10});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = with_defaults(&Fields(&config));
        kinds(&Fields(&config), &Sizes::read(&Fields(&config), true).unwrap())
    }

    #[test]
    fn last_layers_read_the_keys_of_their_kind() {
        let types = ["sliding_attention", "full_attention", "sliding_attention"].repeat(2);
        let found = of(json!({"layer_types": types, "num_kv_shared_layers": 2, "use_double_wide_mlp": true})).unwrap();
        let shares: Vec<_> = found.iter().map(|kind| kind.shares).collect();
        assert_eq!(shares, [None, None, None, None, Some(1), Some(1)]);
        assert_eq!((found[0].head_dim, found[1].head_dim, found[5].head_dim), (16, 32, 32));
        assert_eq!((found[3].intermediate_size, found[4].intermediate_size), (96, 192));
        assert!(found[5].window.is_none(), "the last layer attends to all positions");
    }

    #[test]
    fn what_is_not_computed_is_refused() {
        for (field, value) in [
            ("enable_moe_block", json!(true)),
            ("use_bidirectional_attention", json!("all")),
            ("num_kv_shared_layers", json!(6)),
            ("num_kv_shared_layers", json!(5)),
        ] {
            assert!(of(json!({field: value})).unwrap_err().to_string().contains(field), "{field}");
        }
    }

    #[test]
    fn heads_come_from_the_newest_style_of_configuration() {
        let found = of(json!({"per_layer_config": {"5": {"head_dim": 64, "num_key_value_heads": 1}}})).unwrap();
        assert_eq!((found[5].head_dim, found[5].kv_heads, found[4].head_dim), (64, 1, 16));
        let found = of(json!({"attention_k_eq_v": true, "num_global_key_value_heads": 1})).unwrap();
        assert_eq!((found[5].values_are_keys, found[5].kv_heads, found[0].values_are_keys), (true, 1, false));
    }
}
