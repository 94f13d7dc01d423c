package streamtable

import (
	"encoding/json"

	"github.com/levada-io/levada/stream"
)

// Sums are the number and the digest of records, in any order. Two sets of records with equal sums are taken for the same set.
type Sums struct {
	Records uint64
	Digest  stream.Digest
}

// Add counts a record. Its number is part of the digest.
func (s *Sums) Add(r stream.Record) {
	s.Records++
	s.Digest.Add(r)
}

// MarshalJSON writes the digest as text.
func (s Sums) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Records uint64 `json:"records"`
		Digest  string `json:"digest"`
	}{s.Records, s.Digest.String()})
}
