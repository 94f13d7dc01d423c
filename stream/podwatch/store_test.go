package podwatch

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
)

// leases is a store of which only the part that a watcher uses exists. Its clock is that of the test.
type leases struct {
	stream.Store
	now func() time.Time

	mu      sync.Mutex
	jobs    map[string]*lease
	broken  error // what all calls return
	expires int   // how often Expire was called
	ended   func(*lease)
}

type lease struct {
	job     string
	owner   stream.Owner
	claimed time.Time
	until   time.Time
}

func newLeases(now func() time.Time) *leases { return &leases{now: now, jobs: map[string]*lease{}} }

const ttl = 24 * time.Hour // so that nothing but the watcher ends a lease in a test

func (s *leases) claim(job string, owner stream.Owner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs[job] = &lease{job, owner, s.now(), s.now().Add(ttl)}
}

func (s *leases) breakWith(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = err
}

func (s *leases) Owners(context.Context) ([]stream.Owner, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return nil, s.broken
	}
	var owners []stream.Owner
	for _, l := range s.jobs {
		if !slices.Contains(owners, l.owner) {
			owners = append(owners, l.owner)
		}
	}
	slices.SortFunc(owners, func(a, b stream.Owner) int { return cmp.Compare(a.Incarnation, b.Incarnation) })
	return owners, nil
}

func (s *leases) Expire(_ context.Context, d stream.ExpireFilter) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expires++
	if s.broken != nil {
		return 0, s.broken
	}
	if d.PodUID == "" && d.Incarnation == "" && !d.All {
		panic("Expire of nobody in particular")
	}
	n := 0
	for _, l := range s.jobs {
		switch {
		case d.PodUID != "" && l.owner.PodUID != d.PodUID,
			d.Incarnation != "" && l.owner.Incarnation != d.Incarnation,
			d.ExceptIncarnation != "" && l.owner.Incarnation == d.ExceptIncarnation,
			d.Container != "" && l.owner.Container != "" && l.owner.Container != d.Container,
			!d.ClaimedBefore.IsZero() && !l.claimed.Before(d.ClaimedBefore),
			!l.until.After(s.now()):
			continue
		}
		l.until = s.now()
		n++
		if s.ended != nil {
			s.ended(l)
		}
	}
	return n, nil
}

// over names the jobs whose leases were ended, in their order.
func (s *leases) over() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var jobs []string
	for _, l := range s.jobs {
		if !l.until.After(s.now()) {
			jobs = append(jobs, l.job)
		}
	}
	slices.Sort(jobs)
	return strings.Join(jobs, " ")
}

func (s *leases) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expires
}

func (s *leases) mustBeOver(t *testing.T, jobs ...string) {
	t.Helper()
	if got, want := s.over(), strings.Join(jobs, " "); got != want {
		t.Errorf("leases that were ended: [%s], want [%s]", got, want)
	}
}
