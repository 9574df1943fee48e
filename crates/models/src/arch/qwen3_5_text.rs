//! Qwen 3.5, the dense text models (Qwen, 2026).
//!
//! Every fourth layer has attention, with normalised queries and keys, few rotated pairs, and a gate on its result that
//! the projection of the queries gives; the others have the gated delta rule: a short convolution, a state of fixed
//! size, and a gated norm. Norms are stored minus one, except that norm. Images have other positions in the published
//! models; those of a text are the same in all three sections, so that the sections change nothing here.

use std::sync::Arc;

use bayan_tensor::ops::{self, Activation, Columns, GateColumns, Projection};
use bayan_tensor::{Graph, Matrix, State, Tensor};
use serde_json::{Value, json};

use crate::cache::{Cache, LayerCache, LayerCacheSpec};
use crate::config::{Fields, Sizes};
use crate::decoder::{Decoder, StepInputs};
use crate::layers::{Embedding, GatedMlp, Linear, RmsNorm, RotaryTable};
use crate::load::Loader;
use crate::{LoadOptions, ModelError};

/// Every fourth layer has attention.
const INTERVAL: usize = 4;

#[derive(Debug)]
struct GatedAttention {
    /// Pairs of a query and its gate, then keys and values.
    qkv_proj: Linear,
    o_proj: Linear,
    rotary: Arc<State>,
    q_norm: Arc<State>,
    k_norm: Arc<State>,
    rope: ops::Rope,
    attention: ops::Attention,
    gate: GateColumns,
}

#[derive(Debug)]
struct GatedDeltaNet {
    /// q, k and v, then the gate z of the result.
    in_proj: Linear,
    /// b and a, from which the strength of a correction and the decay follow.
    in_proj_ba: Linear,
    /// [channels, k]
    conv: Arc<State>,
    conv_op: ops::ShortConv,
    /// A and the bias of a, [2, heads].
    constants: Arc<State>,
    delta: ops::GatedDelta,
    /// For the values of one head.
    norm: RmsNorm,
    gate: GateColumns,
    out_proj: Linear,
}

#[derive(Debug)]
enum Mixer {
    Attention(GatedAttention),
    Delta(GatedDeltaNet),
}

#[derive(Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    mixer: Mixer,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
}

/// The model.
#[derive(Debug)]
pub struct Qwen35Text {
    sizes: Sizes,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
}

impl Qwen35Text {
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
        let sizes = Sizes::read(config, false)?;
        let activation = crate::config::activation(config)?;
        if activation != Activation::Silu {
            return config.refuse("hidden_act", "silu");
        }
        let attends = attends(config, &sizes)?;
        let rotary = crate::layers::rotary_table(config, &sizes, options, loader)?;
        let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let embed_tokens = Embedding::load(loader, "model.embed_tokens", &sizes, 1.0).await?;
        let mut layers = Vec::with_capacity(sizes.num_hidden_layers);
        for (index, &attends) in attends.iter().enumerate() {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            layers.push(Layer {
                input_layernorm: RmsNorm::load_minus_one(loader, &name("input_layernorm"), d, eps).await?,
                mixer: if attends {
                    let prefix = name("self_attn.");
                    Mixer::Attention(attention(config, &sizes, options, &rotary, loader, &prefix).await?)
                } else {
                    Mixer::Delta(delta_net(config, &sizes, options, loader, &name("linear_attn.")).await?)
                },
                post_attention_layernorm: RmsNorm::load_minus_one(loader, &name("post_attention_layernorm"), d, eps)
                    .await?,
                mlp: GatedMlp::load(loader, &name("mlp."), &sizes, activation, false).await?,
            });
        }
        let norm = RmsNorm::load_minus_one(loader, "model.norm", d, eps).await?;
        let lm_head = crate::layers::lm_head(&sizes, &embed_tokens, loader).await?;
        Ok(Box::new(Qwen35Text { sizes, embed_tokens, layers, norm, lm_head }))
    }
}

/// The configuration with transformers' defaults for the fields that it leaves out.
fn with_defaults(config: &Fields<'_>) -> Value {
    config.with_defaults(&json!({
        "head_dim": 256,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "partial_rotary_factor": 0.25,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    }))
}

/// Whether each layer has attention: by the list `layer_types`, or every n-th by `full_attention_interval`.
fn attends(config: &Fields<'_>, sizes: &Sizes) -> Result<Vec<bool>, ModelError> {
    let layers = sizes.num_hidden_layers;
    let Some(types) = config.get("layer_types") else {
        let interval = config.optional_size("full_attention_interval")?.unwrap_or(INTERVAL);
        return Ok((0..layers).map(|layer| (layer + 1).is_multiple_of(interval)).collect());
    };
    let kind = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Some(true),
        Some("linear_attention") => Some(false),
        _ => None,
    };
    let list: Option<Vec<bool>> = types.as_array().and_then(|list| list.iter().take(layers).map(kind).collect());
    match list.filter(|list| list.len() == layers) {
        Some(list) => Ok(list),
        None => {
            config.refuse("layer_types", &format!("full_attention or linear_attention for each of the {layers} layers"))
        }
    }
}

async fn attention(
    config: &Fields<'_>,
    sizes: &Sizes,
    options: &LoadOptions,
    rotary: &RotaryTable,
    loader: &mut Loader<'_>,
    prefix: &str,
) -> Result<GatedAttention, ModelError> {
    let (d, head_dim, heads) = (sizes.hidden_size, sizes.head_dim, sizes.num_attention_heads);
    let (q, kv) = (heads * head_dim, sizes.num_key_value_heads * head_dim);
    let bias = config.flag("attention_bias", false)?;
    let parts = [("q_proj", 2 * q), ("k_proj", kv), ("v_proj", kv)];
    Ok(GatedAttention {
        qkv_proj: Linear::load(loader, prefix, &parts, d, bias).await?,
        o_proj: Linear::load(loader, prefix, &[("o_proj", d)], q, bias).await?,
        rotary: rotary.state.clone(),
        q_norm: loader.vector(&[(format!("{prefix}q_norm.weight"), head_dim)], 1.0).await?,
        k_norm: loader.vector(&[(format!("{prefix}k_norm.weight"), head_dim)], 1.0).await?,
        rope: ops::Rope {
            heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            rotary_dim: rotary.dim,
            norm_eps: Some(sizes.rms_norm_eps),
            projection: Projection::GatedQueries,
            ..Default::default()
        },
        attention: ops::Attention {
            heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            context: options.context,
            ..Default::default()
        },
        gate: GateColumns {
            count: q,
            activation: Activation::Sigmoid,
            x: Columns::from(0, q),
            gate: Columns { first: head_dim, run: head_dim, step: 2 * head_dim },
        },
    })
}

async fn delta_net(
    config: &Fields<'_>,
    sizes: &Sizes,
    options: &LoadOptions,
    loader: &mut Loader<'_>,
    prefix: &str,
) -> Result<GatedDeltaNet, ModelError> {
    let d = sizes.hidden_size;
    let (heads, key_heads) = (config.size("linear_num_value_heads")?, config.size("linear_num_key_heads")?);
    let (value_dim, key_dim) = (config.size("linear_value_head_dim")?, config.size("linear_key_head_dim")?);
    if !heads.is_multiple_of(key_heads) || heads > 4096 {
        return config.refuse(
            "linear_num_value_heads",
            &format!("a multiple of linear_num_key_heads, which is {key_heads}, up to 4096"),
        );
    }
    for (field, size) in [("linear_value_head_dim", value_dim), ("linear_key_head_dim", key_dim)] {
        if size > 4096 {
            return config.refuse(field, "at most 4096");
        }
    }
    let kernel = config.size("linear_conv_kernel_dim")?;
    if !(2..=16).contains(&kernel) {
        return config.refuse("linear_conv_kernel_dim", "a length of 2 to 16");
    }
    let tiled = config.flag("linear_value_heads_tiled", false)?;
    let delta = ops::GatedDelta { heads, value_dim, key_heads, key_dim, tiled, context: options.context };
    let (channels, inner) = (delta.width(), heads * value_dim);
    let name = |part: &str| format!("{prefix}{part}");
    let mut constants: Vec<f32> = loader
        .values(&name("A_log"), &[heads], |head| (head as f32 % 16.0 + 1.0).ln())
        .await?
        .iter()
        .map(|v| -v.exp())
        .collect();
    constants.extend(loader.values(&name("dt_bias"), &[heads], |_| 1.0).await?);
    let parts = [("in_proj_qkv", channels), ("in_proj_z", inner)];
    let mut in_proj = Linear::load(loader, prefix, &parts, d, false).await?;
    let mut in_proj_ba = Linear::load(loader, prefix, &[("in_proj_b", heads), ("in_proj_a", heads)], d, false).await?;
    let mut out_proj = Linear::load(loader, prefix, &[("out_proj", d)], inner, false).await?;
    if tiled {
        // An adapter has the heads in Hugging Face's order: it must not be attached to rows in another.
        for linear in [&mut in_proj, &mut in_proj_ba, &mut out_proj] {
            linear.modules.clear();
        }
    }
    Ok(GatedDeltaNet {
        in_proj,
        in_proj_ba,
        conv: loader.scaled_vector(&name("conv1d.weight"), &[channels, 1, kernel], 1.0).await?,
        conv_op: ops::ShortConv { channels, kernel, first: 0, gated: false, bias: false, context: options.context },
        constants: loader.computed("gated delta rule", &[2, heads], move || constants)?,
        delta,
        norm: RmsNorm::load(loader, &name("norm"), value_dim, sizes.rms_norm_eps).await?,
        gate: GateColumns {
            count: inner,
            activation: Activation::Silu,
            x: Columns::from(0, inner),
            gate: Columns::from(channels, inner),
        },
        out_proj,
    })
}

impl GatedAttention {
    fn forward(&self, graph: &mut Graph, x: Tensor, over: ops::Causality, cache: &LayerCache) -> Tensor {
        let qkv = self.qkv_proj.forward(graph, x);
        let norms = Some((&self.q_norm, &self.k_norm));
        let [q, k, v] = graph.rope(self.rope.clone(), qkv, over.positions, &self.rotary, norms);
        let caches = [&cache.keys, &cache.values];
        let (keys, values) = graph.append(cache.rows, k, v, over.positions, over.bases, caches);
        let attention = self.attention.over(cache.rows);
        let y = graph.attention(attention, q, keys, values, over); // [T, H, d]
        let y = graph.flatten(y);
        let y = graph.gate_columns(self.gate.clone(), y, qkv);
        self.o_proj.forward(graph, y)
    }
}

impl GatedDeltaNet {
    fn forward(&self, graph: &mut Graph, x: Tensor, over: ops::Causality, cache: &LayerCache) -> Tensor {
        let context = cache.rows.context;
        let projection = self.in_proj.forward(graph, x); // [T, W]: q, k, v, z
        let gates = self.in_proj_ba.forward(graph, x); // [T, 2H]: b, a
        let conv = ops::ShortConv { context, ..self.conv_op.clone() };
        let mixed = graph.short_conv(conv, projection, &self.conv, None, over, &cache.states[0]);
        let delta = ops::GatedDelta { context, ..self.delta.clone() };
        let y = graph.gated_delta(delta, mixed, gates, &self.constants, over, &cache.states[1]);
        let y = self.norm.forward(graph, y); // each head by itself
        let y = graph.gate_columns(self.gate.clone(), y, projection);
        self.out_proj.forward(graph, y)
    }
}

impl Layer {
    fn forward(&self, graph: &mut Graph, x: Tensor, inputs: StepInputs, cache: &LayerCache) -> Tensor {
        let y = self.input_layernorm.forward(graph, x);
        let y = match &self.mixer {
            Mixer::Attention(attention) => attention.forward(graph, y, inputs.causality, cache),
            Mixer::Delta(delta) => delta.forward(graph, y, inputs.causality, cache),
        };
        let x = graph.add(x, y);
        let y = self.post_attention_layernorm.forward(graph, x);
        let y = self.mlp.forward(graph, y);
        graph.add(x, y)
    }

    fn cache_spec(&self) -> LayerCacheSpec {
        match &self.mixer {
            Mixer::Attention(GatedAttention { attention, .. }) => {
                LayerCacheSpec { width: attention.kv_heads * attention.head_dim, ..Default::default() }
            }
            Mixer::Delta(GatedDeltaNet { conv_op, delta, .. }) => LayerCacheSpec {
                states: vec![(conv_op.kernel - 1) * conv_op.channels, delta.state_len()],
                ..Default::default()
            },
        }
    }

    fn linears(&self) -> Vec<&Linear> {
        let mut all = match &self.mixer {
            Mixer::Attention(attention) => vec![&attention.qkv_proj, &attention.o_proj],
            Mixer::Delta(delta) => vec![&delta.in_proj, &delta.in_proj_ba, &delta.out_proj],
        };
        all.extend([&self.mlp.gate_up_proj, &self.mlp.down_proj]);
        all
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = match &mut self.mixer {
            Mixer::Attention(attention) => vec![&mut attention.qkv_proj, &mut attention.o_proj],
            Mixer::Delta(delta) => vec![&mut delta.in_proj, &mut delta.in_proj_ba, &mut delta.out_proj],
        };
        all.extend([&mut self.mlp.gate_up_proj, &mut self.mlp.down_proj]);
        all
    }
}

impl Decoder for Qwen35Text {
    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn cache_specs(&self) -> Vec<LayerCacheSpec> {
        self.layers.iter().map(Layer::cache_spec).collect()
    }

    fn forward(&self, graph: &mut Graph, inputs: StepInputs, cache: &Cache) -> Tensor {
        let mut x = self.embed_tokens.forward(graph, inputs.tokens); // [T, D]
        for (layer, cache) in self.layers.iter().zip(cache.layers()) {
            x = layer.forward(graph, x, inputs, cache);
        }
        let x = graph.choose_rows(x, inputs.rows); // [R, D]
        let x = self.norm.forward(graph, x);
        self.lm_head.forward(graph, x) // [R, V]
    }

    fn matrices(&self) -> Vec<&Arc<Matrix>> {
        let layers = self.layers.iter().flat_map(Layer::linears).map(|linear| &linear.weight);
        [&self.embed_tokens.weight, &self.lm_head.weight].into_iter().chain(layers).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let layers = self.layers.iter_mut();
        layers.flat_map(Layer::linears_mut).chain([&mut self.lm_head]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_attention_by_list_or_interval() {
        let config = json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
            "num_attention_heads": 4, "vocab_size": 10});
        let sizes = Sizes::read(&Fields(&config), false).unwrap();
        let of = |config: Value| attends(&Fields(&config), &sizes);
        assert_eq!(of(json!({})).unwrap(), [false, false, false, true]);
        assert_eq!(of(json!({"full_attention_interval": 2})).unwrap(), [false, true, false, true]);
        let types = ["full_attention", "linear_attention"].repeat(2);
        assert_eq!(of(json!({"layer_types": types})).unwrap(), [true, false, true, false]);
        for wrong in [json!(["full_attention"]), json!(["sliding_attention"].repeat(4)), json!("all")] {
            assert!(of(json!({"layer_types": wrong})).unwrap_err().to_string().contains("layer_types"));
        }
    }
}
