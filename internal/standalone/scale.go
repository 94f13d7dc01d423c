package standalone

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/levada-io/levada/internal/dataplane/isb"
)

// Wanted is how many processes a vertex is to have. It is kept with the pipeline's state.
type Wanted struct {
	Processes int `json:"processes"`
	// CommandLine is what --processes of the run said then; 0 for nothing. A run that says the same keeps Processes, another number replaces it.
	CommandLine int `json:"commandLine,omitempty"`
}

// Processes are those of a vertex.
type Processes struct {
	Wanted int `json:"wanted"`
	// Running are those that have started, Ending those that have been asked to end.
	Running int `json:"running"`
	Ending  int `json:"ending,omitempty"`
	// Alone is why one process at a time can run the vertex; empty if several can.
	Alone string `json:"alone,omitempty"`
}

// Settled reports whether as many run as should.
func (p Processes) Settled() bool { return p.Running == p.Wanted && p.Ending == 0 }

// MaxProcesses bounds the processes of a vertex.
const MaxProcesses = 100

// Wanted returns how many processes each vertex is to have. Vertices without an entry have as many as the manifest says.
func (p *HostedPipeline) Wanted(ctx context.Context) (map[string]Wanted, error) {
	wanted, _, err := wantedOf(ctx, p.held.store.State())
	return wanted, err
}

// SetWanted replaces the entries of vertices.
func (p *HostedPipeline) SetWanted(ctx context.Context, entries map[string]Wanted) error {
	return changeWanted(ctx, p.held.store.State(), func(all map[string]Wanted) { maps.Copy(all, entries) })
}

// Publish stores how many processes each vertex has, for levada scale.
func (p *HostedPipeline) Publish(ctx context.Context, running map[string]Processes) error {
	value, err := json.Marshal(running)
	if err != nil {
		return err
	}
	return p.held.store.State().Put(ctx, isb.KeyRunning, value)
}

func wantedOf(ctx context.Context, s isb.State) (all map[string]Wanted, revision uint64, err error) {
	value, revision, err := s.Get(ctx, isb.KeyWanted)
	if err != nil {
		return nil, 0, err
	}
	all = map[string]Wanted{}
	if value != nil {
		if err := json.Unmarshal(value, &all); err != nil {
			return nil, 0, fmt.Errorf("%s: %s is not what Levada writes: %w", s.Name(), isb.KeyWanted, err)
		}
	}
	return all, revision, nil
}

func changeWanted(ctx context.Context, s isb.State, change func(map[string]Wanted)) error {
	for {
		all, revision, err := wantedOf(ctx, s)
		if err != nil {
			return err
		}
		before := maps.Clone(all)
		change(all)
		if maps.Equal(before, all) {
			return nil
		}
		value, err := json.Marshal(all)
		if err != nil {
			return err
		}
		if _, err = s.CompareAndSet(ctx, isb.KeyWanted, value, revision); !errors.Is(err, isb.ErrConflict) {
			return err
		}
	}
}

// Scaler changes the number of processes of vertices: at the broker, or through the run that has a data directory.
type Scaler struct {
	service isb.Service
	remote  *remoteLetters
	close   func()
}

// OpenScaler reaches a broker, or the run that has a data directory.
func OpenScaler(ctx context.Context, dataDir string, at Broker) (*Scaler, error) {
	if !at.embedded() {
		service, err := at.dial(ctx, nil, slog.Default())
		if err != nil {
			return nil, err
		}
		return &Scaler{service: service, close: service.Close}, nil
	}
	d, err := OpenDeadLetters(ctx, dataDir, at)
	if err != nil {
		return nil, err
	}
	if l, ok := d.(*remoteLetters); ok {
		return &Scaler{remote: l, close: l.Close}, nil
	}
	d.Close()
	return nil, fmt.Errorf("no process runs the pipelines of %s: start them with levada run --processes VERTEX=N, which needs no levada scale", dataDir)
}

// Close disconnects.
func (s *Scaler) Close() { s.close() }

// Set changes the number of processes of a vertex, and returns what it was. It does not wait for the processes.
func (s *Scaler) Set(ctx context.Context, pipeline, vertex string, n int) (was int, err error) {
	if s.remote != nil {
		var answer struct{ Was int }
		return answer.Was, s.ask(ctx, http.MethodPost, pipeline, vertex, url.Values{"processes": {strconv.Itoa(n)}}, &answer)
	}
	return setProcesses(ctx, s.service, pipeline, vertex, n)
}

// Get returns the processes of a vertex.
func (s *Scaler) Get(ctx context.Context, pipeline, vertex string) (p Processes, err error) {
	if s.remote != nil {
		return p, s.ask(ctx, http.MethodGet, pipeline, vertex, nil, &p)
	}
	_, p, err = findProcesses(ctx, s.service, pipeline, vertex)
	return p, err
}

func (s *Scaler) ask(ctx context.Context, method, pipeline, vertex string, values url.Values, into any) error {
	err := s.remote.call(ctx, method, "processes/"+url.PathEscape(pipeline)+"/"+url.PathEscape(vertex)+"?"+values.Encode(), into)
	if err != nil && strings.HasPrefix(err.Error(), "404 page not found") {
		return fmt.Errorf("process %d runs all vertices in one process: start it with levada run --processes VERTEX=N to run them as several", s.remote.PID)
	}
	return err
}

// refuse is an error of what was asked for.
func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// findProcesses finds the processes of a vertex. The error says why there is nothing to scale.
func findProcesses(ctx context.Context, service isb.Service, pipeline, vertex string) (place isb.Place, p Processes, err error) {
	places, err := service.Places(ctx)
	if err != nil {
		return nil, p, err
	}
	var known []string
	var found []isb.Place
	for _, at := range places {
		o := at.Owner()
		if o.Name == "" {
			continue
		}
		known = append(known, o.Namespace+"/"+o.Name)
		if named(pipeline, o.Namespace, o.Name) {
			found = append(found, at)
		}
	}
	slices.Sort(known)
	switch len(found) {
	case 0:
		return nil, p, fmt.Errorf("%w %s here; there are: %s", errNoPipeline, pipeline, cmp.Or(strings.Join(known, ", "), "none"))
	case 1:
	default:
		return nil, p, refuse("%d pipelines are named %s; use NAMESPACE/NAME/VERTEX", len(found), pipeline)
	}
	place = found[0]
	if holder(ctx, isb.RunLease(place.State())) == "" {
		return nil, p, notScaled(ctx, place, pipeline)
	}
	value, _, err := place.State().Get(ctx, isb.KeyRunning)
	if err != nil {
		return nil, p, err
	}
	all := map[string]Processes{}
	if len(value) > 0 {
		if err := json.Unmarshal(value, &all); err != nil {
			return nil, p, fmt.Errorf("%s: %s is not what Levada writes: %w", place.State().Name(), isb.KeyRunning, err)
		}
	}
	p, ok := all[vertex]
	if !ok {
		return nil, p, refuse("pipeline %s has no vertex %s; its vertices are %s", pipeline, vertex, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
	}
	return place, p, nil
}

// notScaled says who runs a pipeline of which nobody starts processes.
func notScaled(ctx context.Context, place isb.Place, pipeline string) error {
	if owner := holder(ctx, isb.PipelineLease(place.State())); owner != "" {
		return refuse("pipeline %s is run by %s, all vertices in one process: start it with levada run --processes VERTEX=N to run them as several", pipeline, owner)
	}
	names, err := isb.LeasedVertices(ctx, place.State())
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if owner, _ := vertexHolder(ctx, place.State(), name); owner != "" {
			return refuse("the vertices of pipeline %s are processes that were started apart, as vertex %s by %s: start or stop processes of levada vertex yourself", pipeline, name, owner)
		}
	}
	return refuse("nobody runs pipeline %s: start it with levada run --processes VERTEX=N", pipeline)
}

// vertexHolder is a process that runs a vertex, alone or beside others; empty if none does.
func vertexHolder(ctx context.Context, state isb.State, vertex string) (owner string, err error) {
	if owner := holder(ctx, isb.VertexLease(state, vertex)); owner != "" {
		return owner, nil
	}
	keys, err := state.Keys(ctx)
	if err != nil {
		return "", err
	}
	for _, key := range keys {
		if process, ok := strings.CutPrefix(key, "owner."+vertex+"."); ok {
			if owner := holder(ctx, isb.ProcessLease(state, vertex, process)); owner != "" {
				return owner, nil
			}
		}
	}
	return "", nil
}

// setProcesses changes what is wanted of a vertex.
func setProcesses(ctx context.Context, service isb.Service, pipeline, vertex string, n int) (was int, err error) {
	if n < 1 || n > MaxProcesses {
		return 0, refuse("%d processes: expected 1 to %d", n, MaxProcesses)
	}
	place, p, err := findProcesses(ctx, service, pipeline, vertex)
	if err != nil {
		return 0, err
	}
	if n > 1 && p.Alone != "" {
		return 0, refuse("vertex %s runs as one process: %s", vertex, p.Alone)
	}
	return p.Wanted, changeWanted(ctx, place.State(), func(all map[string]Wanted) {
		w := all[vertex]
		w.Processes = n
		all[vertex] = w
	})
}
