//! LFM2 (Liquid AI, 2025), the base of Hala: gated short convolutions, with attention in some layers.
//!
//! A convolution keeps only its last inputs, so that most layers need no keys and values. Such a state cannot be reset
//! to an earlier position.

use std::sync::Arc;

use bayan_tensor::ops;
use bayan_tensor::{Graph, Matrix, State, Tensor};

use crate::cache::{Cache, LayerCache, LayerCacheSpec};
use crate::config::{Fields, Sizes};
use crate::decoder::{Decoder, StepInputs};
use crate::layers::{Attention, Embedding, GatedMlp, Linear, RmsNorm};
use crate::load::Loader;
use crate::{LoadOptions, ModelError};

/// y = out(c ∘ conv(b ∘ x)) with (b, c, x) = in(h)
#[derive(Debug)]
struct GatedConv {
    in_proj: Linear,
    /// [D, k]
    conv: Arc<State>,
    /// \[D\]
    bias: Option<Arc<State>>,
    kernel: usize,
    out_proj: Linear,
}

#[derive(Debug)]
enum Operator {
    Attention(Attention),
    Conv(GatedConv),
}

#[derive(Debug)]
struct Layer {
    operator_norm: RmsNorm,
    operator: Operator,
    ffn_norm: RmsNorm,
    feed_forward: GatedMlp,
}

/// The model.
#[derive(Debug)]
pub struct Lfm2 {
    sizes: Sizes,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    embedding_norm: RmsNorm,
    lm_head: Linear,
}

impl Lfm2 {
    /// Loads the weights.
    ///
    /// # Errors
    /// A configuration or tensor that does not fit.
    pub async fn load(
        config: &Fields<'_>,
        options: &LoadOptions,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Decoder>, ModelError> {
        let mut sizes = Sizes::read(config, true)?;
        sizes.tie_word_embeddings = config.flag("tie_embedding", sizes.tie_word_embeddings)?;
        sizes.intermediate_size = intermediate_size(config)?;
        let is_attention = attention_layers(config, &sizes);
        let rotary = crate::layers::rotary_table(config, &sizes, options, loader)?;
        let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let embed_tokens = Embedding::load(loader, "model.embed_tokens", &sizes, 1.0).await?;
        let mut layers = Vec::with_capacity(sizes.num_hidden_layers);
        for index in 0..sizes.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            layers.push(Layer {
                operator_norm: RmsNorm::load(loader, &name("operator_norm"), d, eps).await?,
                operator: match is_attention[index] {
                    true => {
                        Operator::Attention(attention(&sizes, options, &rotary, loader, &name("self_attn.")).await?)
                    }
                    false => Operator::Conv(conv(config, &sizes, loader, &name("conv.")).await?),
                },
                ffn_norm: RmsNorm::load(loader, &name("ffn_norm"), d, eps).await?,
                feed_forward: feed_forward(&sizes, loader, &name("feed_forward.")).await?,
            });
        }
        let embedding_norm = RmsNorm::load(loader, "model.embedding_norm", d, eps).await?;
        let lm_head = crate::layers::lm_head(&sizes, &embed_tokens, loader).await?;
        Ok(Box::new(Lfm2 { sizes, embed_tokens, layers, embedding_norm, lm_head }))
    }
}

/// Published configurations hold the size before it is multiplied by two thirds and rounded up.
fn intermediate_size(config: &Fields<'_>) -> Result<usize, ModelError> {
    let size = config.size_named(&["block_ff_dim", "intermediate_size"])?;
    if !config.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(size);
    }
    let of = config.optional_size("block_multiple_of")?.unwrap_or(256);
    let multiplier = config.number("block_ffn_dim_multiplier", 1.0)?;
    let scaled = multiplier * (2 * size / 3) as f64;
    if !(1.0..1e9).contains(&scaled) {
        return config.refuse("block_ffn_dim_multiplier", "a factor near 1");
    }
    Ok((scaled as usize).next_multiple_of(of))
}

fn attention_layers(config: &Fields<'_>, sizes: &Sizes) -> Vec<bool> {
    let list = |field: &str| config.get(field).and_then(|v| v.as_array());
    let (types, indices) = (list("layer_types"), list("full_attn_idxs"));
    let is_attention = |layer: usize| match (types, indices) {
        (Some(types), _) => types.get(layer).and_then(|t| t.as_str()) != Some("conv"),
        (None, Some(indices)) => indices.iter().any(|i| i.as_u64() == Some(layer as u64)),
        (None, None) => true,
    };
    (0..sizes.num_hidden_layers).map(is_attention).collect()
}

async fn conv(
    config: &Fields<'_>,
    sizes: &Sizes,
    loader: &mut Loader<'_>,
    prefix: &str,
) -> Result<GatedConv, ModelError> {
    let d = sizes.hidden_size;
    let kernel = config.optional_size("conv_L_cache")?.unwrap_or(3);
    if !(2..=16).contains(&kernel) {
        return config.refuse("conv_L_cache", "a length of 2 to 16");
    }
    let bias = config.flag("conv_bias", false)?;
    Ok(GatedConv {
        in_proj: Linear::load(loader, prefix, &[("in_proj", 3 * d)], d, bias).await?,
        conv: loader.scaled_vector(&format!("{prefix}conv.weight"), &[d, 1, kernel], 1.0).await?,
        bias: if bias { Some(loader.scaled_vector(&format!("{prefix}conv.bias"), &[d], 1.0).await?) } else { None },
        kernel,
        out_proj: Linear::load(loader, prefix, &[("out_proj", d)], d, bias).await?,
    })
}

async fn feed_forward(sizes: &Sizes, loader: &mut Loader<'_>, prefix: &str) -> Result<GatedMlp, ModelError> {
    let (d, f) = (sizes.hidden_size, sizes.intermediate_size);
    Ok(GatedMlp {
        gate_up_proj: Linear::load(loader, prefix, &[("w1", f), ("w3", f)], d, false).await?,
        down_proj: Linear::load(loader, prefix, &[("w2", d)], f, false).await?,
        activation: ops::Activation::Silu,
    })
}

async fn attention(
    sizes: &Sizes,
    options: &LoadOptions,
    rotary: &crate::layers::RotaryTable,
    loader: &mut Loader<'_>,
    prefix: &str,
) -> Result<Attention, ModelError> {
    let (d, head_dim) = (sizes.hidden_size, sizes.head_dim);
    let (q, kv) = (sizes.num_attention_heads * head_dim, sizes.num_key_value_heads * head_dim);
    let q_norm = loader.scaled_vector(&format!("{prefix}q_layernorm.weight"), &[head_dim], 1.0).await?;
    let k_norm = loader.scaled_vector(&format!("{prefix}k_layernorm.weight"), &[head_dim], 1.0).await?;
    Ok(Attention {
        qkv_proj: Linear::load(loader, prefix, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)], d, false).await?,
        o_proj: Linear::load(loader, prefix, &[("out_proj", d)], q, false).await?,
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
            scale: 1.0 / (head_dim as f32).sqrt(),
            context: options.context,
            ..Default::default()
        },
    })
}

impl GatedConv {
    fn forward(&self, graph: &mut Graph, x: Tensor, causality: ops::Causality, cache: &LayerCache) -> Tensor {
        let bcx = self.in_proj.forward(graph, x); // [T, 3D]
        let channels = self.out_proj.weight.columns();
        let op = ops::ShortConv {
            channels,
            kernel: self.kernel,
            first: 0,
            gated: true,
            bias: false,
            context: cache.rows.context,
        };
        let y = graph.short_conv(op, bcx, &self.conv, self.bias.as_ref(), causality, &cache.states[0]); // [T, D]
        self.out_proj.forward(graph, y)
    }
}

impl Layer {
    fn forward(&self, graph: &mut Graph, x: Tensor, inputs: StepInputs, cache: &LayerCache) -> Tensor {
        let y = self.operator_norm.forward(graph, x);
        let y = match &self.operator {
            Operator::Attention(attention) => attention.forward(graph, y, inputs.causality, cache),
            Operator::Conv(conv) => conv.forward(graph, y, inputs.causality, cache),
        };
        let x = graph.add(x, y);
        let y = self.ffn_norm.forward(graph, x);
        let y = self.feed_forward.forward(graph, y);
        graph.add(x, y)
    }

    fn linears(&self) -> [&Linear; 4] {
        let [first, last] = match &self.operator {
            Operator::Attention(attention) => [&attention.qkv_proj, &attention.o_proj],
            Operator::Conv(conv) => [&conv.in_proj, &conv.out_proj],
        };
        [first, last, &self.feed_forward.gate_up_proj, &self.feed_forward.down_proj]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 4] {
        let [first, last] = match &mut self.operator {
            Operator::Attention(attention) => [&mut attention.qkv_proj, &mut attention.o_proj],
            Operator::Conv(conv) => [&mut conv.in_proj, &mut conv.out_proj],
        };
        [first, last, &mut self.feed_forward.gate_up_proj, &mut self.feed_forward.down_proj]
    }
}

impl Decoder for Lfm2 {
    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn cache_specs(&self) -> Vec<LayerCacheSpec> {
        let spec = |layer: &Layer| match &layer.operator {
            Operator::Attention(attention) => attention.cache_spec(),
            Operator::Conv(conv) => {
                LayerCacheSpec { states: vec![(conv.kernel - 1) * self.sizes.hidden_size], ..Default::default() }
            }
        };
        self.layers.iter().map(spec).collect()
    }

    fn forward(&self, graph: &mut Graph, inputs: StepInputs, cache: &Cache) -> Tensor {
        let mut x = self.embed_tokens.forward(graph, inputs.tokens); // [T, D]
        for (layer, cache) in self.layers.iter().zip(cache.layers()) {
            x = layer.forward(graph, x, inputs, cache);
        }
        let x = graph.choose_rows(x, inputs.rows); // [R, D]
        let x = self.embedding_norm.forward(graph, x);
        self.lm_head.forward(graph, x) // [R, V]
    }

    fn matrices(&self) -> Vec<&Arc<Matrix>> {
        let layers = self.layers.iter().flat_map(|layer| layer.linears().map(|linear| &linear.weight));
        [&self.embed_tokens.weight, &self.lm_head.weight].into_iter().chain(layers).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let layers = self.layers.iter_mut();
        layers.flat_map(Layer::linears_mut).chain([&mut self.lm_head]).collect()
    }
}
