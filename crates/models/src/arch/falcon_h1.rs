//! Falcon-H1 (TII, 2025), also Falcon-H1-Arabic: attention and Mamba-2 in parallel in every layer, and multipliers on
//! nearly every projection.
//!
//! Three multipliers cost nothing, because they are merged into other constants: that of the keys into the scale of the
//! scores, that of the logits into the final norm's weights, and that of the state space's result into its kernel. The
//! others are vectors over the columns of a projection.

use std::sync::Arc;

use bayan_tensor::ops;
use bayan_tensor::{Graph, Matrix, State, Tensor};

use crate::cache::{Cache, LayerCache, LayerCacheSpec};
use crate::config::{Fields, Sizes};
use crate::decoder::{Decoder, StepInputs};
use crate::layers::{Attention, Embedding, Linear, RmsNorm};
use crate::load::Loader;
use crate::{LoadOptions, ModelError};

/// Mamba-2: input projection, short convolution, selective state space, output projection.
#[derive(Debug)]
struct Mamba {
    in_proj: Linear,
    /// Multipliers of the projection's sections (z, x, B, C, dt), `[W]`.
    multipliers: Arc<State>,
    /// [channels, k]
    conv: Arc<State>,
    conv_bias: Option<Arc<State>>,
    /// A, D and the bias of dt, [3, heads].
    constants: Arc<State>,
    conv_op: ops::ShortConv,
    space: ops::StateSpace,
    /// For models with a gated norm: ones for a group, the norm's weights, and its epsilon.
    norm: Option<(Arc<State>, Arc<State>, f32)>,
    out_proj: Linear,
}

#[derive(Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    mamba: Mamba,
    self_attn: Attention,
    /// Multiplies the result of attention.
    attention_out: Option<Arc<State>>,
    pre_ff_layernorm: RmsNorm,
    gate_up_proj: Linear,
    /// Multipliers of the gates and of the MLP's result; the latter are applied before the down projection, which is
    /// linear.
    mlp_multipliers: Option<Arc<State>>,
    down_proj: Linear,
    activation: ops::Activation,
}

/// The model.
#[derive(Debug)]
pub struct FalconH1 {
    sizes: Sizes,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    final_layernorm: RmsNorm,
    lm_head: Linear,
}

impl FalconH1 {
    /// Loads the weights.
    ///
    /// # Errors
    /// A configuration or tensor that does not fit.
    pub async fn load(
        config: &Fields<'_>,
        options: &LoadOptions,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Decoder>, ModelError> {
        let sizes = Sizes::read(config, false)?;
        for field in ["attention_bias", "mlp_bias", "mamba_proj_bias", "projectors_bias"] {
            if config.flag(field, false)? {
                return config.refuse(field, "false, as in every published checkpoint");
            }
        }
        let rotary = crate::layers::rotary_table(config, &sizes, options, loader)?;
        let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let embed_tokens =
            Embedding::load(loader, "model.embed_tokens", &sizes, config.number("embedding_multiplier", 1.0)? as f32)
                .await?;
        let mut layers = Vec::with_capacity(sizes.num_hidden_layers);
        for index in 0..sizes.num_hidden_layers {
            layers.push(layer(config, &sizes, options, &rotary, loader, &format!("model.layers.{index}.")).await?);
        }
        let scale = config.number("lm_head_multiplier", 1.0)? as f32;
        let final_layernorm =
            RmsNorm { weight: loader.scaled_vector("model.final_layernorm.weight", &[d], scale).await?, eps };
        let lm_head = crate::layers::lm_head(&sizes, &embed_tokens, loader).await?;
        Ok(Box::new(FalconH1 { sizes, embed_tokens, layers, final_layernorm, lm_head }))
    }
}

/// As [`multipliers`], or `None` if all values are 1.
fn runs(loader: &Loader<'_>, runs: &[(usize, f64)]) -> Result<Option<Arc<State>>, ModelError> {
    if runs.iter().all(|run| run.1 == 1.0) {
        return Ok(None);
    }
    Ok(Some(multipliers(loader, runs)?))
}

/// A vector of runs, each (length, value).
fn multipliers(loader: &Loader<'_>, runs: &[(usize, f64)]) -> Result<Arc<State>, ModelError> {
    let count = runs.iter().map(|run| run.0).sum();
    loader.computed("multipliers", &[count], || {
        runs.iter().flat_map(|&(count, value)| std::iter::repeat_n(value as f32, count)).collect()
    })
}

/// A list of `count` numbers from the configuration; ones if the field is missing.
fn numbers(config: &Fields<'_>, field: &str, count: usize) -> Result<Vec<f64>, ModelError> {
    let Some(value) = config.get(field) else { return Ok(vec![1.0; count]) };
    let list: Option<Vec<f64>> = value.as_array().map(|list| list.iter().filter_map(|v| v.as_f64()).collect());
    match list.filter(|list| list.len() == count) {
        Some(list) => Ok(list),
        None => config.refuse(field, &format!("a list of {count} numbers")),
    }
}

async fn layer(
    config: &Fields<'_>,
    sizes: &Sizes,
    options: &LoadOptions,
    rotary: &crate::layers::RotaryTable,
    loader: &mut Loader<'_>,
    prefix: &str,
) -> Result<Layer, ModelError> {
    let (d, f, eps) = (sizes.hidden_size, sizes.intermediate_size, sizes.rms_norm_eps);
    let name = |part: &str| format!("{prefix}{part}");
    let into = config.number("attention_in_multiplier", 1.0)?;
    let mlp = numbers(config, "mlp_multipliers", 2)?;
    Ok(Layer {
        input_layernorm: RmsNorm::load(loader, &name("input_layernorm"), d, eps).await?,
        mamba: mamba(config, sizes, options, loader, &name("mamba.")).await?,
        self_attn: attention(config, sizes, options, rotary, loader, &name("self_attn."), into).await?,
        // The input's multiplier can be applied to the result: it is linear in the values, which are linear in the
        // layer's input.
        attention_out: runs(loader, &[(d, into * config.number("attention_out_multiplier", 1.0)?)])?,
        pre_ff_layernorm: RmsNorm::load(loader, &name("pre_ff_layernorm"), d, eps).await?,
        gate_up_proj: Linear::load(
            loader,
            prefix,
            &[("feed_forward.gate_proj", f), ("feed_forward.up_proj", f)],
            d,
            false,
        )
        .await?,
        mlp_multipliers: runs(loader, &[(f, mlp[0]), (f, mlp[1])])?,
        down_proj: Linear::load(loader, prefix, &[("feed_forward.down_proj", d)], f, false).await?,
        activation: crate::config::activation(config)?,
    })
}

async fn mamba(
    config: &Fields<'_>,
    sizes: &Sizes,
    options: &LoadOptions,
    loader: &mut Loader<'_>,
    prefix: &str,
) -> Result<Mamba, ModelError> {
    let d = sizes.hidden_size;
    let expanded = config.optional_size("mamba_expand")?.unwrap_or(2).saturating_mul(d);
    let inner = config.optional_size("mamba_d_ssm")?.unwrap_or(expanded);
    let heads = config.size("mamba_n_heads")?;
    let (groups, state_size) = (config.optional_size("mamba_n_groups")?.unwrap_or(1), config.size("mamba_d_state")?);
    if !inner.is_multiple_of(heads)
        || !heads.is_multiple_of(groups)
        || !inner.is_multiple_of(groups)
        || inner > 1 << 20
        || state_size > 4096
    {
        return config.refuse(
            "mamba_n_heads",
            &format!("a divisor of mamba_d_ssm, which is {inner}, and a multiple of mamba_n_groups, which is {groups}"),
        );
    }
    let kernel = config.optional_size("mamba_d_conv")?.unwrap_or(4);
    if !(2..=16).contains(&kernel) {
        return config.refuse("mamba_d_conv", "a length of 2 to 16");
    }
    let (shared, channels) = (groups * state_size, inner + 2 * groups * state_size);
    let width = inner + channels + heads;
    let into = config.number("ssm_in_multiplier", 1.0)?;
    let parts: Vec<f64> = numbers(config, "ssm_multipliers", 5)?.iter().map(|m| m * into).collect();
    let parts = [(inner, parts[0]), (inner, parts[1]), (shared, parts[2]), (shared, parts[3]), (heads, parts[4])];
    let out = config.number("ssm_out_multiplier", 1.0)? as f32;
    let norm = if config.flag("mamba_rms_norm", false)? {
        if config.flag("mamba_norm_before_gate", true)? {
            return config.refuse("mamba_norm_before_gate", "false where mamba_rms_norm is true");
        }
        let ones = loader.computed("ones", &[inner / groups], || vec![1.0; inner / groups])?;
        Some((ones, loader.scaled_vector(&format!("{prefix}norm.weight"), &[inner], out).await?, sizes.rms_norm_eps))
    } else {
        None
    };
    let name = |part: &str| format!("{prefix}{part}");
    let mut constants: Vec<f32> = loader
        .values(&name("A_log"), &[heads], |head| (head as f32 + 1.0).ln())
        .await?
        .iter()
        .map(|v| -v.exp())
        .collect();
    constants.extend(loader.values(&name("D"), &[heads], |_| 1.0).await?);
    constants.extend(loader.values(&name("dt_bias"), &[heads], |_| 1.0).await?);
    let conv_bias = config.flag("mamba_conv_bias", true)?;
    Ok(Mamba {
        in_proj: Linear::load(loader, prefix, &[("in_proj", width)], d, false).await?,
        multipliers: multipliers(loader, &parts)?,
        conv: loader.scaled_vector(&format!("{prefix}conv1d.weight"), &[channels, 1, kernel], 1.0).await?,
        conv_bias: if conv_bias {
            Some(loader.scaled_vector(&format!("{prefix}conv1d.bias"), &[channels], 1.0).await?)
        } else {
            None
        },
        constants: loader.computed("state space", &[3, heads], move || constants)?,
        conv_op: ops::ShortConv { channels, kernel, first: inner, gated: false, bias: false, context: options.context },
        space: ops::StateSpace {
            heads,
            head_dim: inner / heads,
            groups,
            state_size,
            steps: inner + channels,
            scale: if norm.is_some() { 1.0 } else { out },
            context: options.context,
        },
        norm,
        out_proj: Linear::load(loader, prefix, &[("out_proj", d)], inner, false).await?,
    })
}

async fn attention(
    config: &Fields<'_>,
    sizes: &Sizes,
    options: &LoadOptions,
    rotary: &crate::layers::RotaryTable,
    loader: &mut Loader<'_>,
    prefix: &str,
    into: f64,
) -> Result<Attention, ModelError> {
    let (d, head_dim) = (sizes.hidden_size, sizes.head_dim);
    let (q, kv) = (sizes.num_attention_heads * head_dim, sizes.num_key_value_heads * head_dim);
    let scale = into * into * config.number("key_multiplier", 1.0)? / (head_dim as f64).sqrt();
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
            scale: scale as f32,
            context: options.context,
            ..Default::default()
        },
    })
}

impl Mamba {
    fn forward(&self, graph: &mut Graph, x: Tensor, causality: ops::Causality, cache: &LayerCache) -> Tensor {
        let context = cache.rows.context;
        let projection = self.in_proj.forward(graph, x); // [T, W]: z, x, B, C, dt
        let projection = graph.scale_columns(projection, &self.multipliers);
        let conv = ops::ShortConv { context, ..self.conv_op.clone() };
        let mixed =
            graph.short_conv(conv, projection, &self.conv, self.conv_bias.as_ref(), causality, &cache.states[0]);
        let space = ops::StateSpace { context, ..self.space.clone() };
        // [T, inner]
        let mut y = graph.state_space(space, mixed, projection, &self.constants, causality, &cache.states[1]);
        if let Some((ones, weight, eps)) = &self.norm {
            let shape = graph.shape(y).to_vec();
            let group = ones.shape()[0];
            y = graph.reshape(y, &[shape[0] * shape[1] / group, group]);
            y = graph.rms_norm(y, ones, *eps);
            y = graph.reshape(y, &shape);
            y = graph.scale_columns(y, weight);
        }
        self.out_proj.forward(graph, y)
    }
}

impl Layer {
    fn forward(&self, graph: &mut Graph, x: Tensor, inputs: StepInputs, cache: &LayerCache) -> Tensor {
        let h = self.input_layernorm.forward(graph, x);
        let mixed = self.mamba.forward(graph, h, inputs.causality, cache);
        let x = graph.add(x, mixed);
        let attended = self.self_attn.forward(graph, h, inputs.causality, cache);
        let attended = self.attention_out.as_ref().map_or(attended, |factors| graph.scale_columns(attended, factors));
        let x = graph.add(x, attended);
        let y = self.pre_ff_layernorm.forward(graph, x);
        let gate_up = self.gate_up_proj.forward(graph, y); // [T, 2F]
        let gate_up = self.mlp_multipliers.as_ref().map_or(gate_up, |factors| graph.scale_columns(gate_up, factors));
        let y = graph.gated(gate_up, self.activation);
        let y = self.down_proj.forward(graph, y);
        graph.add(x, y)
    }
}

impl Decoder for FalconH1 {
    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn cache_specs(&self) -> Vec<LayerCacheSpec> {
        let spec = |layer: &Layer| {
            let conv = (layer.mamba.conv_op.kernel - 1) * layer.mamba.conv_op.channels;
            LayerCacheSpec { states: vec![conv, layer.mamba.space.state_len()], ..layer.self_attn.cache_spec() }
        };
        self.layers.iter().map(spec).collect()
    }

    fn forward(&self, graph: &mut Graph, inputs: StepInputs, cache: &Cache) -> Tensor {
        let mut x = self.embed_tokens.forward(graph, inputs.tokens); // [T, D]
        for (layer, cache) in self.layers.iter().zip(cache.layers()) {
            x = layer.forward(graph, x, inputs, cache);
        }
        let x = graph.choose_rows(x, inputs.rows); // [R, D]
        let x = self.final_layernorm.forward(graph, x);
        self.lm_head.forward(graph, x) // [R, V]
    }

    fn matrices(&self) -> Vec<&Arc<Matrix>> {
        let layers = self.layers.iter().flat_map(|layer| {
            [
                &layer.mamba.in_proj,
                &layer.mamba.out_proj,
                &layer.self_attn.qkv_proj,
                &layer.self_attn.o_proj,
                &layer.gate_up_proj,
                &layer.down_proj,
            ]
            .map(|linear| &linear.weight)
        });
        [&self.embed_tokens.weight, &self.lm_head.weight].into_iter().chain(layers).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let layers = self.layers.iter_mut().flat_map(|layer| {
            let Layer { mamba, self_attn, gate_up_proj, down_proj, .. } = layer;
            [
                &mut mamba.in_proj,
                &mut mamba.out_proj,
                &mut self_attn.qkv_proj,
                &mut self_attn.o_proj,
                gate_up_proj,
                down_proj,
            ]
        });
        layers.chain([&mut self.lm_head]).collect()
    }
}
