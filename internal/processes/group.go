package processes

import (
	"fmt"

	"github.com/levada-io/levada/internal/standalone"
)

// group has the processes of a vertex. The lock of the run protects it, but for what does not change.
type group struct {
	pipeline *pipeline
	of       standalone.HostedVertex

	wanted int
	// members are those that should run, by number; leaving were asked to end because fewer are wanted; left have ended for good.
	// Invariant: no two of members and leaving have one number.
	members, leaving, left []*member
	started                bool // one of them has run once
	// ending says that all of them are asked to end, so that their number changes no more.
	ending   bool
	restarts int64
	past     totals // of lives that are over
}

// spawn adds a process with the next number. The lock is held.
func (g *group) spawn() {
	r := g.pipeline.run
	m := &member{group: g, number: len(g.members), done: make(chan struct{}), wake: make(chan struct{}, 1)}
	m.name = fmt.Sprintf("%s-%d", g.of.Name, m.number)
	m.label = m.name
	if len(r.pipelines) > 1 {
		m.label = g.pipeline.of.Name + "/" + m.name
	}
	g.members = append(g.members, m)
	r.processes.Go(func() {
		m.run()
		r.update(func() { g.remove(m) })
	})
}

// remove notes that a process which was asked to leave has left. The lock is held.
func (g *group) remove(m *member) {
	for i, l := range g.leaving {
		if l == m {
			g.leaving = append(g.leaving[:i:i], g.leaving[i+1:]...)
			g.left = append(g.left, m)
			return
		}
	}
}

// resize brings the number of processes nearer to what is wanted. A number that a process which is leaving has is free when that has ended: call it again then. The lock is held.
func (g *group) resize() {
	if g.ending {
		return
	}
	for len(g.members) > g.wanted {
		last := g.members[len(g.members)-1]
		g.members = g.members[:len(g.members)-1]
		g.leaving = append(g.leaving, last)
		last.stop()
	}
	for len(g.members) < g.wanted {
		for _, l := range g.leaving {
			if l.number == len(g.members) {
				return
			}
		}
		g.spawn()
	}
}

// stop asks all processes to end in order, for good. The lock is held.
func (g *group) stop() {
	g.ending = true
	for _, m := range g.members {
		m.stop()
	}
}

// resume starts them again. The lock is held, and all have ended.
func (g *group) resume() {
	g.left = append(g.left, g.members...)
	g.members, g.ending = nil, false
	g.resize()
}

// ended are channels that are closed when the processes of now have ended.
func (g *group) ended() (all []<-chan struct{}) {
	r := g.pipeline.run
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ms := range [][]*member{g.members, g.leaving} {
		for _, m := range ms {
			all = append(all, m.done)
		}
	}
	return all
}

// running is how many of the wanted processes run. The lock is held.
func (g *group) running() (n int) {
	for _, m := range g.members {
		if m.finished || m.child != nil && m.child.address != "" && !m.stopping {
			n++
		}
	}
	return n
}

// inputEnded reports whether each process has said that its source has ended. The lock is held.
func (g *group) inputEnded() bool {
	for _, m := range g.members {
		if !m.finished && (m.child == nil || !m.child.inputEnded) {
			return false
		}
	}
	return len(g.leaving) == 0
}

// clean reports whether all processes ended in order. The lock is held.
func (g *group) clean() bool {
	for _, m := range g.members {
		if !m.clean {
			return false
		}
	}
	return true
}

// processes says how many there are, for levada scale. The lock is held.
func (g *group) processes() standalone.Processes {
	return standalone.Processes{Wanted: g.wanted, Running: g.running(), Ending: len(g.leaving), Alone: g.of.Alone}
}
