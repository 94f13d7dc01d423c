package podwatch

import (
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/levada-io/levada/stream"
)

// process is one life of a worker's container.
type process struct {
	owner stream.Owner
	alive bool
}

// simulated is a pod: what really happens in it, what its kubelet has reported, and what the watchers' caches show may all
// differ.
type simulated struct {
	name    string
	current *process // the last process; nil before the first
	status  corev1.ContainerStatus
	phase   corev1.PodPhase
	uid     types.UID
	ended   time.Time
	exists  bool
	over    bool // will never run anything again
}

// world is a simulated namespace with its store and some watchers.
type world struct {
	*rapid.T
	now       time.Time
	skew      time.Duration // how far the nodes' clocks are ahead of all others
	store     *leases
	pods      []*simulated
	processes []*process
	clusters  []*cluster // one for each watcher: caches differ
	watchers  []*reconciler
	selector  string
	jobs      int
	numbers   int
}

func (w *world) clock() time.Time { return w.now }

func (w *world) number() int { w.numbers++; return w.numbers }

// tick lets real time pass, never so little that two things happen at once.
func (w *world) tick(ms int) { w.now = w.now.Add(time.Duration(ms) * time.Millisecond) }

func (w *world) pick(what string, ok func(*simulated) bool) *simulated {
	var some []*simulated
	for _, p := range w.pods {
		if ok(p) {
			some = append(some, p)
		}
	}
	if len(some) == 0 {
		w.Skip("no pod to " + what)
	}
	return rapid.SampledFrom(some).Draw(w.T, what)
}

// report is the kubelet telling the API server what it knows by now.
func (w *world) report(p *simulated) {
	if !p.exists {
		return
	}
	pod := newPod(p.name, p.status)
	pod.UID = p.uid
	pod.Status.Phase = p.phase
	if p.current == nil {
		pod.Status.ContainerStatuses = nil
	}
	for _, c := range w.clusters {
		c.real[p.name] = pod
	}
}

func (p *simulated) idle() bool { return p.exists && !p.over && (p.current == nil || !p.current.alive) }
func (p *simulated) runs() bool { return p.current != nil && p.current.alive }

func (w *world) create(*rapid.T) {
	w.tick(10)
	name := fmt.Sprintf("pod-%d", rapid.IntRange(0, 3).Draw(w.T, "name")) // names come again, as those of a StatefulSet
	for _, p := range w.pods {
		if p.name == name && p.exists {
			w.Skip("the name is taken")
		}
	}
	p := &simulated{name: name, uid: types.UID(fmt.Sprintf("uid-%d", w.number())), phase: corev1.PodPending, exists: true}
	w.pods = append(w.pods, p)
	w.report(p)
}

// start starts the container, for the first time or again. A kubelet needs a second or more to notice an end and to start again.
func (w *world) start(*rapid.T) {
	p := w.pick("start", (*simulated).idle)
	first := p.current == nil
	if !first {
		w.now = later(w.now, p.ended.Add(time.Duration(rapid.IntRange(1100, 20000).Draw(w.T, "backoff"))*time.Millisecond))
	}
	restarts := p.status.RestartCount
	id := fmt.Sprintf("container-%d", w.number())
	last := p.status.State.Terminated
	p.status = running(id, restarts, w.now.Add(w.skew))
	if !first {
		p.status.RestartCount++
		if rapid.IntRange(0, 9).Draw(w.T, "forgotten") > 0 { // else the runtime has forgotten it
			p.status.LastTerminationState.Terminated = last
		}
	}
	p.phase = corev1.PodRunning
	p.current = &process{owner: stream.Owner{Pod: p.name, PodUID: string(p.uid), Container: "worker", Incarnation: fmt.Sprintf("incarnation-%d", w.number())}, alive: true}
	w.processes = append(w.processes, p.current)
	w.tick(1)
	w.maybeReport(p)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// maybeReport: a status may come late, and only the last one counts.
func (w *world) maybeReport(p *simulated) {
	if rapid.Bool().Draw(w.T, "reported") {
		w.report(p)
	}
}

func (w *world) claim(*rapid.T) {
	p := w.pick("claim", (*simulated).runs)
	w.tick(1)
	w.jobs++
	w.store.claim(fmt.Sprintf("job-%d", w.jobs), p.current.owner)
}

// startAndClaim is a worker that finds something to do at once, mostly before its kubelet has told that it runs.
func (w *world) startAndClaim(t *rapid.T) {
	w.start(t)
	w.jobs++
	w.store.claim(fmt.Sprintf("job-%d", w.jobs), w.processes[len(w.processes)-1].owner)
}

func (w *world) die(p *simulated) {
	w.tick(10)
	p.current.alive = false
	p.ended = w.now
	end := &corev1.ContainerStateTerminated{ContainerID: p.status.ContainerID, FinishedAt: second(w.now.Add(w.skew)), ExitCode: rapid.SampledFrom([]int32{0, 1, 137}).Draw(w.T, "code")}
	p.status.State = corev1.ContainerState{Terminated: end}
}

func (w *world) crash(*rapid.T) {
	p := w.pick("crash", (*simulated).runs)
	w.die(p)
	switch rapid.IntRange(0, 3).Draw(w.T, "after") {
	case 0: // restartPolicy Never, or evicted
		p.phase, p.over = rapid.SampledFrom([]corev1.PodPhase{corev1.PodFailed, corev1.PodSucceeded}).Draw(w.T, "phase"), true
	case 1: // in back-off
		p.status.LastTerminationState.Terminated, p.status.State = p.status.State.Terminated, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}
		defer func() { p.status.State.Terminated = p.status.LastTerminationState.Terminated }() // what the next start finds
	}
	w.maybeReport(p)
}

func (w *world) delete(*rapid.T) {
	p := w.pick("delete", func(p *simulated) bool { return p.exists })
	if p.runs() {
		w.die(p)
	}
	p.exists, p.over = false, true
	for _, c := range w.clusters {
		delete(c.real, p.name)
	}
}

// watch lets some pods of a watcher's cache become as they are.
func (w *world) watch(*rapid.T) {
	c := rapid.SampledFrom(w.clusters).Draw(w.T, "watcher")
	for i := range 4 {
		if name := fmt.Sprintf("pod-%d", i); rapid.Bool().Draw(w.T, "delivered") {
			c.deliver(name)
		}
	}
}

func (c *cluster) deliver(name string) {
	if p := c.real[name]; p != nil {
		c.cached[name] = p
	} else {
		delete(c.cached, name)
	}
}

func (w *world) pass(*rapid.T) {
	i := rapid.IntRange(0, len(w.watchers)-1).Draw(w.T, "watcher")
	w.tick(1)
	switch rapid.IntRange(0, 4).Draw(w.T, "faults") {
	case 0:
		w.clusters[i].down = errors.New("the API server is down")
	case 1:
		w.store.breakWith(errors.New("the database is down"))
	}
	_, _, _ = w.watchers[i].pass(w.Context())
	w.clusters[i].down = nil
	w.store.breakWith(nil)
}

// restart is a new watcher process. It begins with a complete list.
func (w *world) restart(*rapid.T) {
	i := rapid.IntRange(0, len(w.watchers)-1).Draw(w.T, "watcher")
	w.watchers[i] = w.watcher(i)
	for n := range 4 {
		w.clusters[i].deliver(fmt.Sprintf("pod-%d", n))
	}
}

func (w *world) watcher(i int) *reconciler {
	return w.clusters[i].reconciler(w.store, w.clock, func(o *Options) { o.Selector = w.selector })
}

func (w *world) wait(*rapid.T) { w.tick(rapid.IntRange(1, 60_000).Draw(w.T, "milliseconds")) }

// settle ends all that is under way: kubelets have reported, caches are complete, watchers have looked.
func (w *world) settle() {
	for _, p := range w.pods {
		w.report(p)
	}
	for i, r := range w.watchers {
		for n := range 4 {
			w.clusters[i].deliver(fmt.Sprintf("pod-%d", n))
		}
		for range 3 {
			w.tick(60_000) // more than Resync
			if _, _, err := r.pass(w.Context()); err != nil {
				w.Fatalf("a pass without faults: %v", err)
			}
		}
	}
}

// newWorld makes a world of two watchers, in which anything may happen for a while. ended is called for each lease that a watcher ends.
func newWorld(rt *rapid.T, skew time.Duration, ended func(*world, *lease)) *world {
	w := &world{T: rt, now: at(0), skew: skew, selector: rapid.SampledFrom([]string{"", "app=orders"}).Draw(rt, "selector")}
	w.store = newLeases(w.clock)
	w.store.ended = func(l *lease) { ended(w, l) }
	for i := range 2 {
		w.clusters = append(w.clusters, newCluster())
		w.watchers = append(w.watchers, w.watcher(i))
	}
	for range 4 { // long lives find more
		rt.Repeat(map[string]func(*rapid.T){
			"create": w.create, "start": w.start, "start and claim": w.startAndClaim, "claim": w.claim, "crash": w.crash, "delete": w.delete,
			"watch": w.watch, "pass": w.pass, "restart": w.restart, "wait": w.wait,
		})
	}
	w.settle()
	return w
}

func (w *world) alive(owner stream.Owner) bool {
	for _, p := range w.processes {
		if p.owner == owner {
			return p.alive
		}
	}
	return false
}

func TestExactlyTheDeadLoseTheirLeases(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt, 0, func(w *world, l *lease) {
			if w.alive(l.owner) {
				rt.Fatalf("%s of %v was ended, which lives and claimed it at %v", l.job, l.owner, l.claimed)
			}
		})
		for _, l := range w.store.jobs {
			if dead, over := !w.alive(l.owner), !l.until.After(w.now); dead != over {
				rt.Errorf("%s of %v, claimed at %v: dead %v, lease ended %v", l.job, l.owner, l.claimed, dead, over)
			}
		}
	})
}

// Whatever the clocks of nodes say, a living worker is left alone after its first claim at the latest, which each watcher may
// misjudge once.
func TestWrongClocksDoNotHurtForEver(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		hurt := 0
		skew := time.Duration(rapid.IntRange(-5000, 5000).Draw(rt, "skew")) * time.Second
		w := newWorld(rt, skew, func(w *world, l *lease) {
			if w.alive(l.owner) {
				hurt++
			}
		})
		for round := range 3 {
			hurt = 0
			for _, p := range w.pods {
				if p.runs() {
					w.jobs++
					w.store.claim(fmt.Sprintf("job-%d", w.jobs), p.current.owner)
				}
			}
			w.settle()
			if round > 0 && hurt > 0 {
				rt.Fatalf("%d leases of living workers were ended in round %d, with clocks that are %v ahead", hurt, round, skew)
			}
		}
	})
}
