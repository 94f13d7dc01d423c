package forward

import (
	"log/slog"
	"sync"
	"time"
)

// sites logs what can happen to every message: the first time at once, and then what came together every reportEvery.
type sites struct {
	mu  sync.Mutex
	all map[string]*site // by what is logged. Bounded: those are texts of the code
}

const reportEvery = 10 * time.Second

// site is one kind of event.
type site struct {
	at       time.Time // of the last line; zero before the first
	messages int       // since then
}

func (s *sites) report(logger *slog.Logger, what string, n int, attrs ...any) {
	s.mu.Lock()
	if s.all == nil {
		s.all = map[string]*site{}
	}
	at := s.all[what]
	if at == nil {
		at = &site{}
		s.all[what] = at
	}
	at.messages += n
	now := time.Now()
	if !at.at.IsZero() && now.Sub(at.at) < reportEvery {
		s.mu.Unlock()
		return
	}
	n, at.at, at.messages = at.messages, now, 0
	s.mu.Unlock()
	logger.Warn(what, append([]any{"messages", n}, attrs...)...)
}
