// Package groupcommit has all who want something committed at the same time share one commit, and its fsync.
package groupcommit

import (
	"context"
	"sync"

	"github.com/levada-io/levada/internal/flow"
)

// Queue holds the blocks that wait for a commit. The first waiter becomes the leader and commits the group.
type Queue struct {
	commit func([]*flow.Block) error
	// leading is held by the one who commits.
	leading chan struct{}
	mu      sync.Mutex
	waiting []*request
}

// request is one block that waits for its commit.
type request struct {
	block *flow.Block
	done  chan struct{}
	err   error
}

// New returns a queue that calls commit for one group of blocks at a time. Its error is that of each of them.
func New(commit func([]*flow.Block) error) *Queue {
	return &Queue{commit: commit, leading: make(chan struct{}, 1)}
}

// Do returns once the block was committed, or not: when ctx ends before anybody has begun with it, it is not.
func (q *Queue) Do(ctx context.Context, b *flow.Block) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{block: b, done: make(chan struct{})}
	q.mu.Lock()
	q.waiting = append(q.waiting, r)
	q.mu.Unlock()
	select {
	case q.leading <- struct{}{}:
		q.lead()
		<-q.leading
	case <-r.done:
	case <-ctx.Done():
		if q.withdraw(r) {
			return ctx.Err()
		}
	}
	<-r.done // at once, unless somebody commits it just now, and then the block is still looked at
	return r.err
}

// Hold waits until no commit is running, and keeps others from committing until release is called.
func (q *Queue) Hold(ctx context.Context) (release func(), err error) {
	select {
	case q.leading <- struct{}{}:
		return func() { <-q.leading }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Waiting returns how many blocks wait that no commit has begun with.
func (q *Queue) Waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// lead commits for all who wait.
func (q *Queue) lead() {
	q.mu.Lock()
	group := q.waiting
	q.waiting = nil
	q.mu.Unlock()
	if len(group) == 0 {
		return
	}
	blocks := make([]*flow.Block, len(group))
	for i, r := range group {
		blocks[i] = r.block
	}
	err := q.commit(blocks)
	for _, r := range group {
		r.err = err
		close(r.done)
	}
}

// withdraw takes back a request that no commit has begun with.
func (q *Queue) withdraw(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, other := range q.waiting {
		if other == r {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			return true
		}
	}
	return false
}
