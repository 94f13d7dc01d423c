package shard

import (
	"cmp"
	"slices"
)

// share returns the member that each shard belongs to, as an index of members; nil without members. It depends on the two sets alone, so that all who see the same
// members agree without asking each other.
//
// Each member gets the average, rounded down or up. Within that, a shard goes to the member with the highest score for it (rendezvous hashing): pairs of member and
// shard are taken from the highest score down, and a pair is skipped if its shard has a member or its member has its share. A member that comes or leaves moves
// little more than its own share.
func share(members, shards []string) []int {
	if len(members) == 0 {
		return nil
	}
	type pair struct {
		score         uint64
		member, shard int
	}
	pairs := make([]pair, 0, len(members)*len(shards))
	for m, member := range members {
		seed := hash(offset64, member)
		for s, shard := range shards {
			pairs = append(pairs, pair{mix(hash(seed, shard)), m, s})
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.member, b.member), cmp.Compare(a.shard, b.shard))
	})
	least, larger := len(shards)/len(members), len(shards)%len(members) // larger: how many members get one more than least
	counts := make([]int, len(members))
	owners := make([]int, len(shards))
	for i := range owners {
		owners[i] = -1
	}
	for _, p := range pairs {
		if owners[p.shard] >= 0 || counts[p.member] > least || counts[p.member] == least && larger == 0 {
			continue
		}
		if counts[p.member] == least {
			larger--
		}
		counts[p.member]++
		owners[p.shard] = p.member
	}
	return owners
}

const (
	offset64 = 14695981039346656037
	prime64  = 1099511628211
)

// hash is FNV-1a, continued from h. It is part of the protocol: members of different versions must agree on it.
func hash(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * prime64
	}
	return (h ^ 0xff) * prime64 // no name contains 0xff: "ab","c" differs from "a","bc"
}

// mix spreads what FNV leaves in the low bits over all of them (the finalizer of MurmurHash3).
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
