//! Gemma 2 (Rivière et al., 2024), the base of BARKA, SILMA, Fanar-1 and Atlas-Chat.
//!
//! Differs from `gemma` in: norms also after each sub-layer, soft-capped scores and final logits, a sliding window on
//! every second layer, and its own scale of the scores.

use std::sync::Arc;

use bayan_tensor::ops;
use bayan_tensor::{Graph, Matrix, Tensor};

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

/// Every second layer attends to all positions; the others have a sliding window.
const PATTERN: usize = 2;

/// The model.
#[derive(Debug)]
pub struct Gemma2 {
    sizes: Sizes,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
    final_softcap: Option<f32>,
}

impl Gemma2 {
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
        let final_softcap = cap(config, "final_logit_softcapping", 30.0)?;
        let rotary = crate::layers::rotary_table(config, &sizes, options, loader)?;
        let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let embed_tokens = Embedding::load(loader, "model.embed_tokens", &sizes, (d as f32).sqrt()).await?;
        let mut layers = Vec::with_capacity(sizes.num_hidden_layers);
        for index in 0..sizes.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            layers.push(Layer {
                input_layernorm: RmsNorm::load_minus_one(loader, &name("input_layernorm"), d, eps).await?,
                self_attn: attention(config, &sizes, options, &rotary, loader, &name("self_attn."), windows[index])
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
        Ok(Box::new(Gemma2 { sizes, embed_tokens, layers, norm, lm_head, final_softcap }))
    }
}

/// A soft-cap, or `None` if the configuration says null.
fn cap(config: &Fields<'_>, field: &str, default: f64) -> Result<Option<f32>, ModelError> {
    if config.0.get(field).is_some_and(serde_json::Value::is_null) {
        return Ok(None);
    }
    let cap = config.number(field, default)?;
    if cap > 0.0 { Ok(Some(cap as f32)) } else { config.refuse(field, "a positive number or null") }
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
    let (q, kv) = (sizes.num_attention_heads * head_dim, sizes.num_key_value_heads * head_dim);
    Ok(Attention {
        qkv_proj: Linear::load(loader, prefix, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)], d, false).await?,
        o_proj: Linear::load(loader, prefix, &[("o_proj", d)], q, false).await?,
        rotary: rotary.state.clone(),
        qk_norm: None,
        rope: ops::Rope {
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            rotary_dim: rotary.dim,
            ..Default::default()
        },
        attention: ops::Attention {
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            scale: (1.0 / scalar.sqrt()) as f32,
            softcap: cap(config, "attn_logit_softcapping", 50.0)?,
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

impl Decoder for Gemma2 {
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
        let logits = self.lm_head.forward(graph, x); // [R, V]
        self.final_softcap.map_or(logits, |cap| graph.softcap(logits, cap))
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
