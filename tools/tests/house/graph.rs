//! What leads back to where it came from.

use std::collections::{BTreeMap, BTreeSet};

/// Which node leads to which.
pub(crate) type Graph<T> = BTreeMap<T, BTreeSet<T>>;

/// The circles of a graph: groups of more than one, in which each leads to every other one.
pub(crate) fn circles<T: Ord + Clone>(graph: &Graph<T>) -> Vec<BTreeSet<T>> {
    let mut back: Graph<T> = Graph::new();
    for (from, all) in graph {
        for to in all {
            back.entry(to.clone()).or_default().insert(from.clone());
        }
    }
    let mut seen = BTreeSet::new();
    let mut order = Vec::new();
    for start in graph.keys() {
        walk(graph, start, &mut seen, &mut order);
    }
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for start in order.iter().rev() {
        let mut group = Vec::new();
        walk(&back, start, &mut seen, &mut group);
        if group.len() > 1 {
            found.push(group.into_iter().collect());
        }
    }
    found
}

/// Adds what is reached from `start` and was not seen before, each behind what it leads to.
fn walk<T: Ord + Clone>(graph: &Graph<T>, start: &T, seen: &mut BTreeSet<T>, order: &mut Vec<T>) {
    let none = BTreeSet::new();
    let next = |of: &T| graph.get(of).unwrap_or(&none).iter().cloned().collect::<Vec<T>>();
    if !seen.insert(start.clone()) {
        return;
    }
    let mut under_way = vec![(start.clone(), next(start))];
    while let Some((of, left)) = under_way.last_mut() {
        match left.pop() {
            Some(to) if seen.insert(to.clone()) => {
                let further = next(&to);
                under_way.push((to, further));
            }
            Some(_) => {}
            None => {
                order.push(of.clone());
                under_way.pop();
            }
        }
    }
}

#[test]
fn circles_are_told_apart_and_what_joins_them_is_in_none() {
    let seen = |arrows: &[(u8, u8)]| {
        let mut graph = Graph::new();
        for (from, to) in arrows {
            graph.entry(*from).or_insert_with(BTreeSet::new).insert(*to);
        }
        let mut found: Vec<Vec<u8>> =
            circles(&graph).into_iter().map(|group| group.into_iter().collect()).collect();
        found.sort();
        found
    };
    assert_eq!(seen(&[(1, 2), (2, 3), (1, 3), (3, 3)]), [[0; 0]; 0]);
    assert_eq!(
        seen(&[(1, 2), (2, 1), (2, 3), (3, 4), (4, 5), (5, 6), (6, 4)]),
        [vec![1, 2], vec![4, 5, 6]]
    );
}
