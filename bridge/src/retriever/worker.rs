//! The thread that owns the model: whatever waits together is computed together.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Tensor};
use qformer::stage1::CaptionOptions;

use super::decoder::{Decoded, Looked, Picture};
use super::{Found, Job, Retrieved, Score, Tally, Want};
use crate::cache::{Cache, ImageKey};
use crate::event::Usage;
use crate::matcher::{Caption, Matcher, TEXT_BATCH};
use crate::stages::{Stage, Stages};
use crate::vision_worker::{MAX_BATCH, add, during, lock};
use crate::{Error, Result};

pub(super) struct Worker {
    pub matcher: Arc<Matcher>,
    pub cache: Arc<Mutex<Cache<Looked>>>,
    pub tally: Arc<Tally>,
}

/// A job on its way through a batch.
struct Pending {
    job: Job,
    keys: Vec<ImageKey>,
    usage: Usage,
    /// Of a job that wants scores: those of its pairs.
    scores: Vec<Score>,
    caption: Option<Caption>,
    failure: Option<Error>,
}

impl Pending {
    fn stages(&self) -> &Stages {
        &self.job.request.stages
    }

    /// Whether there is more to do for it.
    fn goes_on(&self) -> bool {
        self.failure.is_none() && !self.job.is_left()
    }
}

/// A pair that the matching head reads.
struct Pair {
    /// Place among the pending jobs, and among its pairs.
    of: (usize, usize),
    key: ImageKey,
    text: usize,
}

type Seen = HashMap<ImageKey, Looked>;

impl Worker {
    pub fn run(&self, decoded: &Receiver<Decoded>) {
        while let Ok(first) = decoded.recv() {
            let size = |of: &Decoded| of.pictures.len().max(of.job.request.texts.len()).max(1);
            let mut n = size(&first);
            let mut batch = vec![first];
            while n < TEXT_BATCH {
                let Ok(next) = decoded.try_recv() else { break };
                n += size(&next);
                batch.push(next);
            }
            self.tally.active.store(batch.len(), Ordering::Relaxed);
            self.process(batch);
            self.tally.active.store(0, Ordering::Relaxed);
        }
    }

    fn process(&self, batch: Vec<Decoded>) {
        let mut pending = Vec::with_capacity(batch.len());
        let mut seen = Seen::new();
        let mut new_pixels: Vec<(ImageKey, Tensor)> = Vec::new();
        let mut all_taken = Vec::with_capacity(batch.len());
        for decoded in batch {
            let Decoded {
                mut job,
                pictures,
                tokens,
                taken,
            } = decoded;
            all_taken.push(taken);
            (job.waiting, job.queued) = (None, None);
            if job.is_left() {
                continue;
            }
            if job.is_late() {
                job.answer(Err(Error::QueueTimeout));
                continue;
            }
            let rows = self.matcher.picture_rows();
            let mut usage = Usage {
                prompt_tokens: tokens + rows * pictures.len(),
                image_tokens: rows * pictures.len(),
                ..Usage::default()
            };
            let keys = pictures.iter().map(|(key, _)| *key).collect();
            for (key, picture) in pictures {
                if self.add(key, picture, &mut seen, &mut new_pixels) {
                    usage.cached_tokens += rows;
                }
            }
            pending.push(Pending {
                job,
                keys,
                usage,
                scores: Vec::new(),
                caption: None,
                failure: None,
            });
        }
        self.look(&pending, new_pixels, &mut seen);
        drop(all_taken);
        self.keep(&seen);
        // A picture whose batch failed fails those that need it, and them alone.
        for pending in &mut pending {
            if !pending.keys.iter().all(|key| seen.contains_key(key)) {
                pending.failure = Some(Error::VisionFailed);
            }
        }
        let texts = self.read_texts(&mut pending);
        self.score(&mut pending, &seen, &texts);
        // Whoever has what is wanted does not wait for the others' pairs and captions.
        let (done, mut pending): (Vec<_>, Vec<_>) = pending
            .into_iter()
            .partition(|pending| self.is_done(pending));
        for pending in done {
            answer(pending, &seen, &texts);
        }
        self.match_pairs(&mut pending, &seen);
        self.caption(&mut pending, &seen);
        for pending in pending {
            answer(pending, &seen, &texts);
        }
    }

    /// Whether nothing but features was wanted.
    fn is_done(&self, pending: &Pending) -> bool {
        match &pending.job.request.want {
            _ if !pending.goes_on() => true,
            Want::Features => true,
            Want::Scores { matched, .. } => *matched == 0 || !self.matcher.abilities().matches,
            Want::Caption(_) => false,
        }
    }

    /// Keeps what was made of pictures for later requests.
    fn keep(&self, seen: &Seen) {
        let mut cache = lock(&self.cache);
        for (key, looked) in seen {
            let evicted = cache.put(*key, looked.clone());
            add(&self.tally.vision.cache_evictions, evicted);
        }
        let bytes = cache.bytes() as u64;
        let counter = &self.tally.vision.cache_bytes;
        counter.store(bytes, Ordering::Relaxed);
    }

    /// Puts a picture to those that are known, or to those that are new; whether it is known.
    fn add(
        &self,
        key: ImageKey,
        picture: Picture,
        seen: &mut Seen,
        new_pixels: &mut Vec<(ImageKey, Tensor)>,
    ) -> bool {
        let counters = &self.tally.vision;
        let is_here = seen.contains_key(&key) || new_pixels.iter().any(|(new, _)| *new == key);
        let known = match picture {
            _ if is_here => None,
            Picture::Looked(looked) => Some(looked),
            // Another request's may have been looked at since.
            Picture::Pixels(pixels) => {
                let known = lock(&self.cache).get(&key);
                if known.is_none() {
                    add(&counters.cache_misses, 1);
                    new_pixels.push((key, pixels));
                    return false;
                }
                known
            }
        };
        add(&counters.cache_hits, 1);
        seen.extend(known.map(|looked| (key, looked)));
        true
    }

    /// Runs new pictures through the ViT, and what gives them features.
    fn look(&self, pending: &[Pending], mut pixels: Vec<(ImageKey, Tensor)>, seen: &mut Seen) {
        let needs = |key: &ImageKey| {
            let waits = |pending: &&Pending| pending.goes_on() && pending.keys.contains(key);
            pending.iter().filter(waits).collect::<Vec<_>>()
        };
        loop {
            // Whoever has left needs no picture any more.
            pixels.retain(|(key, _)| !needs(key).is_empty());
            if pixels.is_empty() {
                return;
            }
            let rest = pixels.split_off(pixels.len().min(MAX_BATCH));
            let chunk = std::mem::replace(&mut pixels, rest);
            let mut requests: Vec<Stages> = Vec::new();
            for pending in pending {
                if chunk.iter().any(|(key, _)| pending.keys.contains(key)) {
                    requests.push(pending.stages().clone());
                }
            }
            match self.look_at(&chunk, &requests) {
                Ok(looked) => seen.extend(chunk.iter().map(|(key, _)| *key).zip(looked)),
                Err(error) => tracing::error!(%error, "a batch of pictures could not be encoded"),
            }
        }
    }

    fn look_at(&self, chunk: &[(ImageKey, Tensor)], requests: &[Stages]) -> Result<Vec<Looked>> {
        let heads = self.matcher.heads();
        let pixels: Vec<&Tensor> = chunk.iter().map(|(_, pixels)| pixels).collect();
        let pixels = Tensor::stack(&pixels, 0)?;
        let vision = during(requests, Stage::Vit, || heads.vision(&pixels))?;
        let counters = &self.tally.vision;
        add(&counters.batches, 1);
        add(&counters.pictures, chunk.len());
        let features = match heads.abilities().compares {
            false => vec![Vec::new(); chunk.len()],
            true => {
                add(&counters.readings, chunk.len());
                let features = during(requests, Stage::Qformer, || heads.image_features(&vision))?;
                features.to_dtype(DType::F32)?.to_vec3::<f32>()?
            }
        };
        let looked = features.into_iter().enumerate().map(|(i, features)| {
            Ok(Looked {
                // Copied, so that none keeps the memory of all.
                vision: vision.get(i)?.copy()?,
                features: features.into(),
            })
        });
        looked.collect()
    }

    /// The features of all texts that are to be compared.
    fn read_texts(&self, pending: &mut [Pending]) -> HashMap<String, Vec<f32>> {
        let wants = |pending: &&mut Pending| {
            pending.goes_on() && !matches!(pending.job.request.want, Want::Caption(_))
        };
        let mut texts: Vec<String> = Vec::new();
        let mut requests = Vec::new();
        let mut found: HashMap<String, Vec<f32>> = HashMap::new();
        for pending in pending.iter_mut().filter(wants) {
            requests.push(pending.stages().clone());
            for text in &pending.job.request.texts {
                if !found.contains_key(text) {
                    found.insert(text.clone(), Vec::new());
                    texts.push(text.clone());
                }
            }
        }
        // A batch is as long as its longest text.
        texts.sort_by_key(String::len);
        for chunk in texts.chunks(TEXT_BATCH) {
            if !pending.iter().any(Pending::goes_on) {
                break;
            }
            let read = || {
                let texts: Vec<&str> = chunk.iter().map(String::as_str).collect();
                let features = self.matcher.heads().text_features(&texts)?;
                Ok::<_, Error>(features.to_dtype(DType::F32)?.to_vec2::<f32>()?)
            };
            match during(&requests, Stage::Qformer, read) {
                Ok(features) => {
                    add(&self.tally.texts, chunk.len());
                    found.extend(chunk.iter().cloned().zip(features));
                }
                Err(error) => tracing::error!(%error, "a batch of texts could not be read"),
            }
        }
        found.retain(|_, features| !features.is_empty());
        for pending in pending.iter_mut() {
            let request = &pending.job.request;
            if !matches!(request.want, Want::Caption(_))
                && !request.texts.iter().all(|text| found.contains_key(text))
            {
                pending.failure.get_or_insert(Error::RetrievalFailed);
            }
        }
        found
    }

    /// How near the pairs are.
    fn score(&self, pending: &mut [Pending], seen: &Seen, texts: &HashMap<String, Vec<f32>>) {
        for pending in pending.iter_mut().filter(|pending| pending.goes_on()) {
            let request = &pending.job.request;
            let Want::Scores { pairs, .. } = &request.want else {
                continue;
            };
            let score = |&(picture, text): &(usize, usize)| {
                let looked = seen.get(pending.keys.get(picture)?)?;
                let text = texts.get(request.texts.get(text)?)?;
                let cosine = |row: &Vec<f32>| row.iter().zip(text).map(|(a, b)| a * b).sum::<f32>();
                let cosines = looked.features.iter().map(cosine);
                Some(Score {
                    similarity: cosines.fold(f32::NEG_INFINITY, f32::max),
                    probability: None,
                })
            };
            match pairs.iter().map(score).collect::<Option<Vec<Score>>>() {
                Some(scores) => pending.scores = scores,
                None => pending.failure = Some(Error::RetrievalFailed),
            }
        }
    }

    /// What the matching head makes of the most similar pairs, those of all requests together.
    fn match_pairs(&self, pending: &mut [Pending], seen: &Seen) {
        if !self.matcher.abilities().matches {
            return;
        }
        let mut chosen: Vec<Pair> = Vec::new();
        for (place, pending) in pending.iter().enumerate() {
            let Want::Scores { pairs, matched } = &pending.job.request.want else {
                continue;
            };
            let mut order: Vec<usize> = (0..pending.scores.len()).collect();
            let similarity = |pair: &usize| pending.scores[*pair].similarity;
            order.sort_by(|a, b| similarity(b).total_cmp(&similarity(a)));
            order.truncate(*matched);
            chosen.extend(order.into_iter().map(|pair| Pair {
                of: (place, pair),
                key: pending.keys[pairs[pair].0],
                text: pairs[pair].1,
            }));
        }
        // The pairs of one picture share what is computed of it.
        chosen.sort_by_key(|pair| pair.key);
        let (mut shared, mut single) = (Vec::new(), Vec::new());
        for pairs in chosen.chunk_by(|a, b| a.key == b.key) {
            match pairs {
                [pair] => single.push(pair),
                pairs => shared.extend(pairs.chunks(TEXT_BATCH)),
            }
        }
        for pairs in shared {
            self.match_chunk(&pairs.iter().collect::<Vec<_>>(), pending, seen);
        }
        for pairs in single.chunks(MAX_BATCH) {
            self.match_chunk(pairs, pending, seen);
        }
    }

    fn match_chunk(&self, pairs: &[&Pair], pending: &mut [Pending], seen: &Seen) {
        let pairs: Vec<&&Pair> = pairs
            .iter()
            .filter(|pair| pending[pair.of.0].goes_on())
            .collect();
        let Some(first) = pairs.first() else { return };
        let mut requests: Vec<usize> = pairs.iter().map(|pair| pair.of.0).collect();
        requests.sort_unstable();
        requests.dedup();
        let requests: Vec<Stages> = requests
            .into_iter()
            .map(|place| pending[place].stages().clone())
            .collect();
        let texts: Vec<&str> = pairs
            .iter()
            .map(|pair| pending[pair.of.0].job.request.texts[pair.text].as_str())
            .collect();
        let is_shared = pairs.iter().all(|pair| pair.key == first.key);
        let keys: Vec<ImageKey> = match is_shared {
            true => vec![first.key],
            false => pairs.iter().map(|pair| pair.key).collect(),
        };
        let read = || {
            let vision = stacked(&keys, seen)?;
            self.matcher.heads().match_probability(&vision, &texts)
        };
        match during(&requests, Stage::Qformer, read) {
            Ok(probabilities) => {
                add(&self.tally.pairs, pairs.len());
                for (pair, probability) in pairs.into_iter().zip(probabilities) {
                    let (place, index) = pair.of;
                    pending[place].scores[index].probability = Some(probability);
                }
            }
            Err(error) => {
                tracing::error!(%error, "a batch of pairs could not be matched");
                for pair in pairs {
                    let failure = &mut pending[pair.of.0].failure;
                    failure.get_or_insert(Error::RetrievalFailed);
                }
            }
        }
    }

    /// Captions and answers, those that are asked alike together.
    fn caption(&self, pending: &mut [Pending], seen: &Seen) {
        let answers = self.matcher.abilities().answers;
        let mut groups: Vec<(CaptionOptions, Option<String>, Vec<usize>)> = Vec::new();
        for (place, pending) in pending.iter().enumerate() {
            let Want::Caption(options) = &pending.job.request.want else {
                continue;
            };
            let text = pending.job.request.texts.first();
            // Questions may differ in a batch, beginnings of captions not.
            let prefix = text.filter(|_| !answers).cloned();
            let group = groups
                .iter_mut()
                .find(|(of, begins, _)| of == options && *begins == prefix);
            match group {
                Some((.., places)) => places.push(place),
                None => groups.push((options.clone(), prefix, vec![place])),
            }
        }
        for (options, prefix, places) in groups {
            for places in places.chunks(MAX_BATCH) {
                let together = self.write(places, pending, seen, &options, prefix.as_deref());
                if together.is_err() && places.len() > 1 {
                    // One at fault must not fail the others.
                    for place in places {
                        let alone = [*place];
                        let written =
                            self.write(&alone, pending, seen, &options, prefix.as_deref());
                        settle(written, &alone, pending);
                    }
                } else {
                    settle(together, places, pending);
                }
            }
        }
    }

    fn write(
        &self,
        places: &[usize],
        pending: &[Pending],
        seen: &Seen,
        options: &CaptionOptions,
        prefix: Option<&str>,
    ) -> Result<Vec<Option<Caption>>> {
        let wanted: Vec<usize> = (0..places.len())
            .filter(|i| pending[places[*i]].goes_on())
            .collect();
        if wanted.is_empty() {
            return Ok(vec![None; places.len()]);
        }
        let of = |i: &usize| &pending[places[*i]];
        let keys: Vec<ImageKey> = wanted
            .iter()
            .flat_map(|i| of(i).keys.first())
            .copied()
            .collect();
        let requests: Vec<Stages> = wanted.iter().map(|i| of(i).stages().clone()).collect();
        let heads = self.matcher.heads();
        let captions = during(&requests, Stage::Decode, || {
            let vision = stacked(&keys, seen)?;
            if !self.matcher.abilities().answers {
                return heads.caption_from(&vision, prefix, options);
            }
            let question = |i: &usize| of(i).job.request.texts.first().map_or("", String::as_str);
            let questions: Vec<&str> = wanted.iter().map(question).collect();
            heads.answer(&vision, &questions, options)
        })?;
        let mut all = vec![None; places.len()];
        for (i, caption) in wanted.into_iter().zip(captions) {
            all[i] = Some(caption);
        }
        Ok(all)
    }
}

/// Gives captions to those that asked for them.
fn settle(written: Result<Vec<Option<Caption>>>, places: &[usize], pending: &mut [Pending]) {
    match written {
        Ok(captions) => {
            for (place, caption) in places.iter().zip(captions) {
                pending[*place].caption = caption;
            }
        }
        // There is but one: several have been tried one by one.
        Err(error) => {
            if let Some(place) = places.first() {
                pending[*place].failure.get_or_insert(error);
            }
        }
    }
}

/// Pictures `[pictures, rows, width]` by their keys.
fn stacked(keys: &[ImageKey], seen: &Seen) -> Result<Tensor> {
    let vision = keys
        .iter()
        .map(|key| seen.get(key).map(|looked| &looked.vision));
    let vision = vision.collect::<Option<Vec<&Tensor>>>();
    Ok(Tensor::stack(&vision.ok_or(Error::VisionFailed)?, 0)?)
}

fn answer(pending: Pending, seen: &Seen, texts: &HashMap<String, Vec<f32>>) {
    let Pending {
        job,
        keys,
        mut usage,
        scores,
        caption,
        failure,
    } = pending;
    if let Some(error) = failure {
        return job.answer(Err(error));
    }
    let found = match &job.request.want {
        Want::Scores { .. } => Some(Found::Scores(scores)),
        Want::Caption(_) => caption.map(|caption| {
            usage.completion_tokens = caption.ids.len();
            Found::Caption(caption)
        }),
        Want::Features => {
            let pictures = keys.iter().map(|key| Some(seen.get(key)?.features.clone()));
            let texts = job
                .request
                .texts
                .iter()
                .map(|text| texts.get(text).cloned());
            let found = pictures.collect::<Option<_>>().zip(texts.collect());
            found.map(|(pictures, texts)| Found::Features { pictures, texts })
        }
    };
    let outcome = match found {
        Some(found) => Ok(Retrieved { found, usage }),
        None => Err(Error::RetrievalFailed),
    };
    job.answer(outcome);
}
