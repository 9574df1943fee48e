//! Gemma 3, the text models (Kamath et al., 2025): Gemma 3 270M and 1B, Fanar-2.
//!
//! Differs from `gemma2` in: normalised queries and keys instead of soft-caps, and two rotary bases, one for the layers
//! with a sliding window and one for every sixth layer, which attends to all positions. Residuals of published weights
//! exceed the range of f16; activations are f32 here.

use std::sync::Arc;

use bayan_tensor::ops;
use bayan_tensor::{Graph, Matrix, Tensor};
use serde_json::{Value, json};

use crate::cache::{Cache, LayerCache, LayerCacheSpec};
use crate::config::{Fields, Sizes};
use crate::decoder::{Decoder, StepInputs};
use crate::layers::{Attention, Embedding, GatedMlp, Linear, RmsNorm};
use crate::load::Loader;
use crate::{LoadOptions, ModelError};

#[derive(Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: GatedMlp,
    post_feedforward_layernorm: RmsNorm,
}

/// Every sixth layer attends to all positions; the others have a sliding window.
const PATTERN: usize = 6;

/// The model.
#[derive(Debug)]
pub struct Gemma3Text {
    sizes: Sizes,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
}

impl Gemma3Text {
    /// Loads the weights.
    ///
    /// # Errors
    /// A configuration or tensor that does not fit.
    pub async fn load(
        config: &Fields<'_>,
        options: &LoadOptions,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Decoder>, ModelError> {
        let sizes = Sizes::read(config, true)?;
        let activation = super::gemma::activation(config)?;
        let windows = config.windows(sizes.num_hidden_layers, PATTERN)?;
        let global = crate::layers::rotary_table(&Fields(&rope(config, true)?), &sizes, options, loader)?;
        let local = crate::layers::rotary_table(&Fields(&rope(config, false)?), &sizes, options, loader)?;
        let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let embed_tokens = Embedding::load(loader, "model.embed_tokens", &sizes, (d as f32).sqrt()).await?;
        let mut layers = Vec::with_capacity(sizes.num_hidden_layers);
        for index in 0..sizes.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            layers.push(Layer {
                input_layernorm: RmsNorm::load_minus_one(loader, &name("input_layernorm"), d, eps).await?,
                self_attn: attention(
                    config,
                    &sizes,
                    options,
                    if windows[index].is_some() { &local } else { &global },
                    loader,
                    &name("self_attn."),
                    windows[index],
                )
                .await?,
                post_attention_layernorm: RmsNorm::load_minus_one(loader, &name("post_attention_layernorm"), d, eps)
                    .await?,
                pre_feedforward_layernorm: RmsNorm::load_minus_one(loader, &name("pre_feedforward_layernorm"), d, eps)
                    .await?,
                mlp: GatedMlp::load(loader, &name("mlp."), &sizes, activation, false).await?,
                post_feedforward_layernorm: RmsNorm::load_minus_one(
                    loader,
                    &name("post_feedforward_layernorm"),
                    d,
                    eps,
                )
                .await?,
            });
        }
        let norm = RmsNorm::load_minus_one(loader, "model.norm", d, eps).await?;
        let lm_head = crate::layers::lm_head(&sizes, &embed_tokens, loader).await?;
        Ok(Box::new(Gemma3Text { sizes, embed_tokens, layers, norm, lm_head }))
    }
}

/// The rotary fields of the layers that attend to all positions (`global`), or of those with a sliding window.
/// transformers 5 has both in `rope_parameters`; transformers 4 has `rope_theta` with a scaling, and
/// `rope_local_base_freq` without.
fn rope(config: &Fields<'_>, global: bool) -> Result<Value, ModelError> {
    let kind = if global { "full_attention" } else { "sliding_attention" };
    if let Some(parameters) = config.get("rope_parameters").and_then(|parameters| parameters.get(kind)) {
        return Ok(json!({ "rope_parameters": parameters }));
    }
    let (field, default, scaling) =
        if global { ("rope_theta", 1e6, config.get("rope_scaling")) } else { ("rope_local_base_freq", 1e4, None) };
    Ok(json!({ "rope_theta": config.number(field, default)?, "rope_scaling": scaling }))
}

async fn attention(
    config: &Fields<'_>,
    sizes: &Sizes,
    options: &LoadOptions,
    rotary: &crate::layers::RotaryTable,
    loader: &mut Loader<'_>,
    prefix: &str,
    window: Option<usize>,
) -> Result<Attention, ModelError> {
    let (d, head_dim) = (sizes.hidden_size, sizes.head_dim);
    let scalar = config.number("query_pre_attn_scalar", 256.0)?;
    if scalar <= 0.0 {
        return config.refuse("query_pre_attn_scalar", "a positive number");
    }
    let [q_norm, k_norm] = ["q_norm", "k_norm"].map(|part| vec![(format!("{prefix}{part}.weight"), head_dim)]);
    let (q_norm, k_norm) = (loader.vector(&q_norm, 1.0).await?, loader.vector(&k_norm, 1.0).await?);
    let (q, kv) = (sizes.num_attention_heads * head_dim, sizes.num_key_value_heads * head_dim);
    Ok(Attention {
        qkv_proj: Linear::load(loader, prefix, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)], d, false).await?,
        o_proj: Linear::load(loader, prefix, &[("o_proj", d)], q, false).await?,
        rotary: rotary.state.clone(),
        qk_norm: Some((q_norm, k_norm)),
        rope: ops::Rope {
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            rotary_dim: rotary.dim,
            norm_eps: Some(sizes.rms_norm_eps),
            ..Default::default()
        },
        attention: ops::Attention {
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            scale: (1.0 / scalar.sqrt()) as f32,
            window,
            context: options.context,
            ..Default::default()
        },
    })
}

impl Layer {
    fn forward(&self, graph: &mut Graph, x: Tensor, inputs: StepInputs, cache: &LayerCache) -> Tensor {
        let y = self.input_layernorm.forward(graph, x);
        let y = self.self_attn.forward(graph, y, inputs.causality, cache);
        let y = self.post_attention_layernorm.forward(graph, y);
        let x = graph.add(x, y);
        let y = self.pre_feedforward_layernorm.forward(graph, x);
        let y = self.mlp.forward(graph, y);
        let y = self.post_feedforward_layernorm.forward(graph, y);
        graph.add(x, y)
    }
}

impl Decoder for Gemma3Text {
    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn cache_specs(&self) -> Vec<LayerCacheSpec> {
        self.layers.iter().map(|layer| layer.self_attn.cache_spec()).collect()
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
        let layers = self.layers.iter().flat_map(|layer| {
            [&layer.self_attn.qkv_proj, &layer.self_attn.o_proj, &layer.mlp.gate_up_proj, &layer.mlp.down_proj]
                .map(|linear| &linear.weight)
        });
        [&self.embed_tokens.weight, &self.lm_head.weight].into_iter().chain(layers).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let layers = self.layers.iter_mut();
        let linears = layers.flat_map(|layer| {
            [
                &mut layer.self_attn.qkv_proj,
                &mut layer.self_attn.o_proj,
                &mut layer.mlp.gate_up_proj,
                &mut layer.mlp.down_proj,
            ]
        });
        linears.chain([&mut self.lm_head]).collect()
    }
}
