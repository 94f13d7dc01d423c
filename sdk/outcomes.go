package sdk

import (
	"cmp"
	"fmt"
	"slices"
)

// pending are encoded outcomes that have not been sent. They lie in one buffer, a run for each row of neighbours, in the
// order in which they came. The buffer begins with the frame's head for the first run, so a single run is ready to be sent.
type pending struct {
	id   uint64
	out  reply
	runs []run
}

type run struct{ first, count, start, end int }

func (p *pending) size() int {
	if p.out.buffer == nil {
		return 0
	}
	return len(*p.out.buffer)
}

// open begins a frame.
func (p *pending) open(first, sizeHint int) {
	p.out = newReply(sizeHint + 64)
	*p.out.buffer = appendBlockHead(*p.out.buffer, p.id, first)
}

func (p *pending) add(i int, results []Result, failed *failure, sizeHint, limit int) {
	if p.out.buffer == nil {
		p.open(i, min(sizeHint, flushSize))
	}
	buffer := p.out.buffer
	start := len(*buffer)
	*buffer = appendOutcome(*buffer, results, failed)
	if size := len(*buffer) - start; size > limit {
		too := &failure{text: fmt.Sprintf("results have %d bytes, at most %d can be sent", size, limit)}
		*buffer = appendOutcome((*buffer)[:start], nil, too)
	}
	if n := len(p.runs); n > 0 && p.runs[n-1].first+p.runs[n-1].count == i {
		p.runs[n-1].count++
		p.runs[n-1].end = len(*buffer)
		return
	}
	p.runs = append(p.runs, run{i, 1, start, len(*buffer)})
}

// take returns the frames and empties the pending outcomes.
func (p *pending) take() []reply {
	if p.out.buffer == nil {
		return nil
	}
	whole, runs := p.out, p.runs
	p.out, p.runs = reply{}, p.runs[:0]
	if len(runs) <= 1 {
		return []reply{whole}
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.first, b.first) })
	var replies []reply
	for i, r := range runs {
		if i == 0 || runs[i-1].first+runs[i-1].count != r.first {
			replies = append(replies, newReply(r.end-r.start+64))
			b := replies[len(replies)-1].buffer
			*b = appendBlockHead(*b, p.id, r.first)
		}
		b := replies[len(replies)-1].buffer
		*b = append(*b, (*whole.buffer)[r.start:r.end]...)
	}
	whole.drop()
	return replies
}

func newReply(size int) reply {
	b := buffers.Get(size)
	*b = (*b)[:0]
	return reply{b}
}

// drop gives back a buffer that is not sent.
func (r reply) drop() { buffers.Put(r.buffer) }

func appendBlockHead(b []byte, id uint64, first int) []byte {
	return appendVarint(appendVarint(b, 1, id), 2, uint64(first))
}

func appendOutcome(b []byte, results []Result, failed *failure) []byte {
	start := len(b)
	b, body := begin(b, 3)
	if failed == nil {
		var err error
		if b, err = appendResults(b, results); err != nil {
			return appendOutcome(b[:start], nil, userError(err))
		}
		return end(b, body)
	}
	b = appendString(b, 2, failed.text)
	b = appendString(b, 3, failed.stack)
	return end(b, body)
}
