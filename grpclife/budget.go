package grpclife

import "sync"

// budget is the token bucket of gRFC A6 (retry throttling): a failure takes a token, a success gives back a part of one, and calls are
// tried again only while more than half of the tokens are there. So a server that fails gets at most few calls twice, and a healthy
// one has room for accidents.
type budget struct {
	most, ratio float64

	mu     sync.Mutex
	tokens float64
}

func newBudget(most, ratio float64) *budget { return &budget{most: most, ratio: ratio, tokens: most} }

func (b *budget) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.tokens+b.ratio, b.most)
}

// failed takes a token and reports whether another attempt is allowed.
func (b *budget) failed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = max(b.tokens-1, 0)
	return b.tokens > b.most/2
}
