//! What is counted of terms of affinity: how many pods of each domain a term means, and how many of each domain have it.
//!
//! Counts are kept as pods come and go, so that no decision looks at all pods. Pods of one template share their terms, and
//! a term is found by a label that its selector names, so that a pod meets only terms that may mean it.
//!
//! Invariants: a term that has owners is known; counts are of pods on nodes that are there; no count is zero.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::affinity::{Term, asking};
use super::view::PodView;
use crate::base::labels::Labels;

/// Terms without owners that are remembered.
const IDLE_MAX: usize = 512;

/// Pods in domains.
pub type Counts = HashMap<Box<str>, i64>;

/// What is known of one term.
#[derive(Debug)]
struct Entry {
    term: Arc<Term>,
    owners: usize,
    /// Pods that have it as a required anti-affinity.
    repels: Counts,
    /// The weights of those that have it as another one.
    pulls: Counts,
    /// Pods that it means; not counted where nobody has asked.
    meant: Option<Counts>,
}

/// All terms.
#[derive(Debug, Default)]
pub struct Terms {
    places: HashMap<Arc<Term>, usize>,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    /// Terms by a label that the pods have which they mean.
    by_label: HashMap<Box<str>, HashMap<Box<str>, BTreeSet<usize>>>,
    /// Terms that name no such label.
    loose: BTreeSet<usize>,
    idle: usize,
    namespaces: HashMap<Box<str>, Labels>,
}

// === impl Entry ===

impl Entry {
    fn new(term: &Arc<Term>) -> Self {
        Self { term: term.clone(), owners: 0, repels: Counts::new(), pulls: Counts::new(), meant: None }
    }
}

/// Counts more or less in a domain.
pub fn count(counts: &mut Counts, domain: &str, change: i64) {
    match counts.get_mut(domain) {
        Some(here) => {
            *here += change;
            if *here == 0 {
                counts.remove(domain);
            }
        }
        None if change != 0 => drop(counts.insert(domain.into(), change)),
        None => {}
    }
}

// === impl Terms ===

impl Terms {
    /// Whether a term means a pod.
    pub fn means(&self, term: &Term, pod: &PodView) -> bool {
        term.means(&pod.object, &self.namespaces)
    }

    /// Whether a pod that wants to be near others may find a node because this one has one.
    pub fn helps_by_coming(&self, other: &PodView, waiting: &PodView) -> bool {
        let required = waiting.affinity.iter().filter_map(|own| own.required.first());
        required.into_iter().any(|term| self.means(term, other))
    }

    /// Whether a pod may find a node because this one has left its own.
    pub fn helps_by_going(&self, other: &PodView, waiting: &PodView) -> bool {
        let repels = |one: &PodView, two: &PodView| {
            one.affinity.iter().flat_map(|own| &own.repelled).any(|term| self.means(term, two))
        };
        // Where the last one of a group has gone, another may be its first.
        repels(waiting, other) || repels(other, waiting) || self.helps_by_coming(other, waiting)
    }

    /// Answers of terms, one after another, whether they mean a pod.
    pub fn asking<'a>(&'a self, pod: &'a PodView) -> impl FnMut(&Term) -> bool + 'a {
        asking(&pod.object, &self.namespaces)
    }

    /// How many pods of each domain a term means, where that is counted.
    pub fn meant(&self, term: &Term) -> Option<&Counts> {
        let place = self.places.get(term)?;
        self.entries[*place].as_ref()?.meant.as_ref()
    }

    /// The required anti-affinities of others that mean a pod, with how many of each domain have them.
    pub fn repelling<'t>(&'t self, pod: &'t PodView) -> impl Iterator<Item = (&'t Arc<Term>, &'t Counts)> {
        self.candidates(&pod.object.meta.labels)
            .filter(|entry| !entry.repels.is_empty() && self.means(&entry.term, pod))
            .map(|entry| (&entry.term, &entry.repels))
    }

    /// The other terms of others that mean a pod, with their weights in each domain.
    pub fn pulling<'t>(&'t self, pod: &'t PodView) -> impl Iterator<Item = (&'t Arc<Term>, &'t Counts)> {
        self.candidates(&pod.object.meta.labels)
            .filter(|entry| !entry.pulls.is_empty() && self.means(&entry.term, pod))
            .map(|entry| (&entry.term, &entry.pulls))
    }

    /// Counts a pod that is on a node with these labels.
    pub fn enter(&mut self, pod: &PodView, node: &Labels) {
        self.note_owner(pod, node, 1);
        self.note_meant(pod, node, 1);
    }

    /// Undoes [`Self::enter`].
    pub fn leave(&mut self, pod: &PodView, node: &Labels) {
        self.note_meant(pod, node, -1);
        self.note_owner(pod, node, -1);
    }

    /// The terms of a pod that nobody has counted yet whom they mean.
    pub fn uncounted(&self, pod: &PodView) -> Vec<Arc<Term>> {
        let asked = pod.affinity.iter().flat_map(|affinity| affinity.asked());
        asked.filter(|term| self.meant(term).is_none()).cloned().collect()
    }

    /// Forgets terms without owners, where there are many.
    pub fn trim(&mut self) {
        if self.idle >= IDLE_MAX {
            let idle = self.entries.iter().enumerate().filter(|(_, e)| e.as_ref().is_some_and(|e| e.owners == 0));
            let idle: Vec<usize> = idle.map(|(place, _)| place).collect();
            idle.into_iter().for_each(|place| self.drop_entry(place));
            self.idle = 0;
        }
    }

    /// Goes on counting whom a term means, from here.
    pub fn count_on(&mut self, term: &Arc<Term>, counts: Counts) {
        let place = self.place_of(term);
        if let Some(entry) = &mut self.entries[place] {
            entry.meant = Some(counts);
        }
    }

    /// Enters a namespace or its new labels; without them it is gone. Answers whether terms may mean others now.
    pub fn put_namespace(&mut self, name: &str, labels: Option<&Labels>) -> bool {
        if self.namespaces.get(name) == labels {
            return false;
        }
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.into(), labels.clone())),
            None => drop(self.namespaces.remove(name)),
        }
        let mut are_others = false;
        for entry in self.entries.iter_mut().flatten().filter(|entry| entry.term.is_of_labelled()) {
            // Counted anew when somebody asks.
            entry.meant = None;
            are_others = true;
        }
        are_others
    }

    /// The namespaces that are known.
    pub fn namespace_names(&self) -> Vec<Box<str>> {
        self.namespaces.keys().cloned().collect()
    }

    fn candidates<'t>(&'t self, labels: &'t Labels) -> impl Iterator<Item = &'t Entry> {
        // Each term is in one place, and a label has one value: none is met twice.
        let of_labels = labels.iter().filter_map(|(key, value)| self.by_label.get(key)?.get(value)).flatten();
        self.loose.iter().chain(of_labels).filter_map(|place| self.entries[*place].as_ref())
    }

    fn note_owner(&mut self, pod: &PodView, node: &Labels, change: i64) {
        let Some(affinity) = &pod.affinity else { return };
        for term in &affinity.repelled {
            self.note_one(term, node, change, |entry, domain| count(&mut entry.repels, domain, change));
        }
        for (term, weight) in &affinity.pulls {
            self.note_one(term, node, change, |entry, domain| count(&mut entry.pulls, domain, weight * change));
        }
    }

    fn note_one(&mut self, term: &Arc<Term>, node: &Labels, change: i64, note: impl FnOnce(&mut Entry, &str)) {
        let place = self.place_of(term);
        let Some(entry) = &mut self.entries[place] else { return };
        let was_idle = entry.owners == 0;
        entry.owners = entry.owners.saturating_add_signed(change as isize);
        let is_idle = entry.owners == 0;
        if let Some(domain) = term.domain(node) {
            note(entry, domain);
        }
        match (was_idle, is_idle) {
            (true, false) => self.idle -= 1,
            (false, true) if entry.meant.is_none() => self.drop_entry(place),
            (false, true) => self.idle += 1,
            _ => {}
        }
    }

    fn note_meant(&mut self, pod: &PodView, node: &Labels, change: i64) {
        let places: Vec<usize> = {
            let mut means = self.asking(pod);
            let is_counted = |entry: &&Entry| entry.meant.is_some() && means(&entry.term);
            let meant = self.candidates(&pod.object.meta.labels).filter(is_counted);
            meant.filter_map(|entry| self.places.get(&entry.term).copied()).collect()
        };
        for place in places {
            let Some(entry) = &mut self.entries[place] else { continue };
            if let (Some(counts), Some(domain)) = (&mut entry.meant, entry.term.domain(node)) {
                count(counts, domain, change);
            }
        }
    }

    /// The place of a term; it gets one where it has none.
    fn place_of(&mut self, term: &Arc<Term>) -> usize {
        if let Some(place) = self.places.get(term) {
            return *place;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[place] = Some(Entry::new(term));
        self.places.insert(term.clone(), place);
        self.idle += 1;
        match term.handle() {
            Some(requirement) => {
                let of_key = self.by_label.entry(requirement.key.as_str().into()).or_default();
                let values: BTreeSet<&String> = requirement.values.iter().collect();
                for value in values {
                    of_key.entry(value.as_str().into()).or_default().insert(place);
                }
            }
            None => {
                self.loose.insert(place);
            }
        }
        place
    }

    fn drop_entry(&mut self, place: usize) {
        let Some(entry) = self.entries[place].take() else { return };
        self.places.remove(&entry.term);
        self.free.push(place);
        match entry.term.handle() {
            Some(requirement) => {
                let Some(of_key) = self.by_label.get_mut(requirement.key.as_str()) else { return };
                for value in &requirement.values {
                    let Some(all) = of_key.get_mut(value.as_str()) else { continue };
                    all.remove(&place);
                    if all.is_empty() {
                        of_key.remove(value.as_str());
                    }
                }
                if of_key.is_empty() {
                    self.by_label.remove(requirement.key.as_str());
                }
            }
            None => {
                self.loose.remove(&place);
            }
        }
    }
}
