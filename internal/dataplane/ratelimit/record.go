package ratelimit

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"
)

// record is what the processes of a vertex agree on. All times are of their common clock; see the package comment.
type record struct {
	// Clock is what the clock was when the record was written, or earlier.
	Clock time.Duration `json:"clock"`
	// Due is when all grants that were taken may be used. It only grows.
	Due time.Duration `json:"due"`
	// Takers are the processes that have taken grants lately.
	Takers map[string]taker `json:"takers"`
}

// taker is what a process took last.
type taker struct {
	// At is the clock then, Number the number of the grant, from 1. Each attempt has another one.
	At     time.Duration `json:"at"`
	Number uint64        `json:"number"`
}

func decode(value []byte) (r record, err error) {
	if len(value) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(value, &r); err != nil {
		return r, fmt.Errorf("the record of the rate limit is damaged (%w); remove it, and it is made again", err)
	}
	return r, nil
}

func (r record) encode() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // numbers and strings
	}
	return b
}

// recently is how long a process counts as one that takes grants after it has taken one. All take one in the time that dues are ahead.
func (r record) recently() time.Duration { return 2*time.Second + 2*max(0, r.Due-r.Clock) }

// taking is how many processes take grants.
func (r record) taking() (n int) {
	for _, t := range r.Takers {
		if t.At >= r.Clock-r.recently() {
			n++
		}
	}
	return n
}

// take is the record after a process has taken a grant that is worth some time.
func (r record) take(name string, number uint64, clock, worth time.Duration) record {
	next := record{Clock: max(clock, r.Clock), Takers: maps.Clone(r.Takers)}
	next.Due = max(r.Due, next.Clock) + worth
	if next.Takers == nil {
		next.Takers = map[string]taker{}
	}
	next.Takers[name] = taker{At: next.Clock, Number: number}
	oldest := next.Clock - 2*next.recently()
	maps.DeleteFunc(next.Takers, func(_ string, t taker) bool { return t.At < oldest })
	return next
}
