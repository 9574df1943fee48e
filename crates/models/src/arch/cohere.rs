//! Cohere's Command R and Aya: attention and MLP in parallel after one LayerNorm without a bias, rotary positions on
//! adjacent pairs, and scaled logits. Command R+ also normalises each head of queries and keys.

use std::sync::Arc;

use bayan_tensor::ops;
use bayan_tensor::{Graph, Matrix, Tensor};

use crate::cache::{Cache, LayerCache, LayerCacheSpec};
use crate::config::{Fields, Sizes};
use crate::decoder::{Decoder, StepInputs};
use crate::layers::{Attention, Embedding, GatedMlp, LayerNorm, Linear};
use crate::load::Loader;
use crate::{LoadOptions, ModelError};

#[derive(Debug)]
struct Layer {
    input_layernorm: LayerNorm,
    self_attn: Attention,
    mlp: GatedMlp,
}

/// The model.
#[derive(Debug)]
pub struct Cohere {
    sizes: Sizes,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: LayerNorm,
    lm_head: Linear,
}

impl Cohere {
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
        let activation = crate::config::activation(config)?;
        // The final norm has no bias, so that its weights can include the scale of the logits.
        let logit_scale = config.number("logit_scale", 0.0625)? as f32;
        let rotary = crate::layers::rotary_table(config, &sizes, options, loader)?;
        let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let embed_tokens = Embedding::load(loader, "model.embed_tokens", &sizes, 1.0).await?;
        let mut layers = Vec::with_capacity(sizes.num_hidden_layers);
        for index in 0..sizes.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            layers.push(Layer {
                input_layernorm: LayerNorm::load(loader, &name("input_layernorm"), d, eps, false, 1.0).await?,
                self_attn: attention(config, &sizes, options, &rotary, loader, &name("self_attn.")).await?,
                mlp: GatedMlp::load(loader, &name("mlp."), &sizes, activation, false).await?,
            });
        }
        let norm = LayerNorm::load(loader, "model.norm", d, eps, false, logit_scale).await?;
        let lm_head = crate::layers::lm_head(&sizes, &embed_tokens, loader).await?;
        Ok(Box::new(Cohere { sizes, embed_tokens, layers, norm, lm_head }))
    }
}

async fn attention(
    config: &Fields<'_>,
    sizes: &Sizes,
    options: &LoadOptions,
    rotary: &crate::layers::RotaryTable,
    loader: &mut Loader<'_>,
    prefix: &str,
) -> Result<Attention, ModelError> {
    let (d, head_dim) = (sizes.hidden_size, sizes.head_dim);
    let (q, kv) = (sizes.num_attention_heads * head_dim, sizes.num_key_value_heads * head_dim);
    let bias = config.flag("attention_bias", false)?;
    let qk_norm = if config.flag("use_qk_norm", false)? {
        let q_norm = loader
            .scaled_vector(&format!("{prefix}q_norm.weight"), &[sizes.num_attention_heads, head_dim], 1.0)
            .await?;
        Some((
            q_norm,
            loader
                .scaled_vector(&format!("{prefix}k_norm.weight"), &[sizes.num_key_value_heads, head_dim], 1.0)
                .await?,
        ))
    } else {
        None
    };
    Ok(Attention {
        qkv_proj: Linear::load(loader, prefix, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)], d, bias).await?,
        o_proj: Linear::load(loader, prefix, &[("o_proj", d)], q, bias).await?,
        rotary: rotary.state.clone(),
        rope: ops::Rope {
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            rotary_dim: rotary.dim,
            interleaved: true,
            norm_eps: qk_norm.as_ref().map(|_| sizes.rms_norm_eps),
            norm: ops::HeadNorm::Layer,
            ..Default::default()
        },
        attention: ops::Attention {
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            context: options.context,
            ..Default::default()
        },
        qk_norm,
    })
}

impl Layer {
    fn forward(&self, graph: &mut Graph, x: Tensor, inputs: StepInputs, cache: &LayerCache) -> Tensor {
        let y = self.input_layernorm.forward(graph, x);
        let attended = self.self_attn.forward(graph, y, inputs.causality, cache);
        let x = graph.add(x, attended);
        let y = self.mlp.forward(graph, y);
        graph.add(x, y)
    }
}

impl Decoder for Cohere {
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
