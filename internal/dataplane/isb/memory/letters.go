package memory

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
)

// letters implements deadletter.Storage.
type letters struct {
	name string

	mu   sync.Mutex
	held []letter // in the order in which they were stored
	last uint64
}

type letter struct {
	deadletter.Stored
	number uint64
}

func (l *letters) Name() string { return l.name }

// at returns where a letter is, -1 if there is none. mu is held.
func (l *letters) at(name string) int {
	return slices.IndexFunc(l.held, func(s letter) bool { return s.Name == name })
}

func (l *letters) Add(_ context.Context, s deadletter.Stored) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at(s.Name) < 0 {
		l.last++
		l.held = append(l.held, letter{deadletter.Stored{Name: s.Name, Head: bytes.Clone(s.Head), Payload: bytes.Clone(s.Payload)}, l.last})
	}
	return nil
}

func (l *letters) Get(_ context.Context, name string) (deadletter.Stored, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.at(name)
	if at < 0 {
		return deadletter.Stored{}, fmt.Errorf("%w: %s", deadletter.ErrNotFound, name)
	}
	return l.held[at].Stored, nil
}

func (l *letters) Remove(_ context.Context, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.at(name)
	if at < 0 {
		return fmt.Errorf("%w: %s", deadletter.ErrNotFound, name)
	}
	l.held = slices.Delete(l.held, at, at+1)
	return nil
}

func (l *letters) Page(ctx context.Context, vertex string, after uint64, limit int) (page []deadletter.Stored, next uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.held {
		if s.number <= after || vertex != "" && !strings.HasPrefix(s.Name, vertex+".") {
			continue
		}
		if len(page) == limit {
			return page, next, nil
		}
		page, next = append(page, deadletter.Stored{Name: s.Name, Head: s.Head}), s.number
	}
	return page, 0, ctx.Err()
}
