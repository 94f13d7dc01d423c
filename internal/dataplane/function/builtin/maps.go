package builtin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// one processes one message: it changes m, a copy, and says whether it is a result. An error puts the message aside.
type one func(m *flow.Message) (keep bool, err error)

// plain makes programs that take no arguments.
func plain(f one) func(*Program, map[string]string, Options) error {
	return func(p *Program, _ map[string]string, _ Options) error {
		p.Map = each(f)
		return nil
	}
}

// each applies f to each message of a block. Results and outcomes are allocated for the block, not for each message.
func each(f one) func(context.Context, []flow.Message) ([]function.Outcome, error) {
	return func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		out, results := make([]function.Outcome, len(in)), make([]flow.Message, len(in))
		for i := range in {
			results[i] = in[i]
			keep, err := guarded(f, &results[i])
			switch {
			case err != nil:
				out[i] = broken(err)
			case !keep:
				out[i].Dropped = 1
			default:
				out[i].Results = results[i : i+1 : i+1]
			}
		}
		return out, nil
	}
}

// guarded turns a panic of f into an error, so that no payload ends the vertex.
func guarded(f one, m *flow.Message) (keep bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			keep, err = false, fmt.Errorf("panic: %v", r)
		}
	}()
	return f(m)
}

func broken(err error) function.Outcome {
	return function.Outcome{Verdict: function.Broken, Failure: &deadletter.Failure{Reason: deadletter.Error, Error: err.Error(), Attempts: 1}}
}

// makeCat: what is handed on costs a copy of its description, not of its payload.
func makeCat(p *Program, _ map[string]string, _ Options) error {
	p.Map = func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return handOn(in), nil
	}
	return nil
}

func handOn(in []flow.Message) []function.Outcome {
	out, results := make([]function.Outcome, len(in)), make([]flow.Message, len(in))
	copy(results, in)
	for i := range out {
		out[i].Results = results[i : i+1 : i+1]
	}
	return out
}

func makeSlowCat(p *Program, _ map[string]string, opt Options) error {
	pause := 10 * time.Second
	if s := opt.Env["SLEEP_SECONDS"]; s != "" {
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return fmt.Errorf("SLEEP_SECONDS is %q; give a whole number of seconds", s)
		}
		pause = time.Duration(n) * time.Second
	}
	p.Map = func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
			return handOn(in), nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return nil
}

var (
	evenKeys, oddKeys = []string{"even"}, []string{"odd"}
	evenTags, oddTags = []string{"even-tag"}, []string{"odd-tag"}
)

func evenOdd(m *flow.Message) (bool, error) {
	n, err := strconv.ParseInt(string(m.Value), 10, 64)
	switch {
	case err != nil:
		return false, nil
	case n%2 == 0:
		m.Keys, m.Tags = evenKeys, evenTags
	default:
		m.Keys, m.Tags = oddKeys, oddTags
	}
	return true, nil
}

func makeFlatmap(p *Program, _ map[string]string, _ Options) error {
	p.Map = func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n := len(in)
		for i := range in {
			n += bytes.Count(in[i].Value, []byte{','})
		}
		out, results := make([]function.Outcome, len(in)), make([]flow.Message, 0, n)
		for i := range in {
			first := len(results)
			for rest, more := in[i].Value, true; more; {
				m := in[i]
				m.Value, rest, more = bytes.Cut(rest, []byte{','})
				results = append(results, m)
			}
			out[i].Results = results[first:len(results):len(results)]
		}
		return out, nil
	}
	return nil
}

func bypassCat(m *flow.Message) (bool, error) {
	m.Tags = slices.Clip(m.Tags) // the parent's are not to be written to
	has := func(words ...string) bool {
		for _, w := range words {
			if bytes.Contains(m.Value, []byte(w)) {
				return true
			}
		}
		return false
	}
	if has("fallback", "Fallback") {
		m.Tags = append(m.Tags, "fallback")
	}
	if has("onSuccess", "OnSuccess", "on_success", "on-success") {
		m.Tags = append(m.Tags, "onSuccess")
	}
	if has("primary") {
		m.Tags = append(m.Tags, "sink")
	}
	return true, nil
}

// The count of retry travels with the message: a redelivery must not count, and a restart must not forget.
const retryGroup, retryKey, retryPasses = "retry", "passes", 3

var retryTags = []string{"retry"}

func retryTwice(m *flow.Message) (bool, error) {
	user, err := userGroups(m.Metadata)
	if err != nil {
		return false, err
	}
	passes, _ := strconv.Atoi(string(user.get(retryGroup, retryKey)))
	if passes++; passes >= retryPasses {
		delete(user, retryGroup)
		m.Tags = nil
	} else {
		user.set(retryGroup, retryKey, []byte(strconv.Itoa(passes)))
		m.Tags = retryTags
	}
	m.Metadata = withUserGroups(m.Metadata, user)
	return true, nil
}

func tickgen(m *flow.Message) (bool, error) {
	var tick struct {
		Data      struct{ Value uint64 }
		Createdts int64
	}
	if json.Unmarshal(m.Value, &tick) != nil {
		return false, nil
	}
	b, err := json.Marshal(struct {
		Value uint64
		Time  string
	}{tick.Data.Value, time.Unix(0, tick.Createdts).UTC().Format(time.RFC3339)})
	m.Value = b
	return true, err
}

func makeMapMetadata(p *Program, _ map[string]string, opt Options) error {
	var mu sync.Mutex
	p.Map = func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		var lines []byte
		out, err := each(func(m *flow.Message) (bool, error) {
			user, err := userGroups(m.Metadata)
			if err != nil {
				return false, err
			}
			// The words are what Numaflow's tests search for.
			lines = fmt.Appendf(lines, "Groups at mapper: [%s]\n", printable([]byte(strings.Join(user.names(), " "))))
			user.set("map-group", "map-key", []byte("map-value"))
			m.Metadata = withUserGroups(m.Metadata, user)
			return true, nil
		})(ctx, in)
		mu.Lock()
		defer mu.Unlock()
		if _, printErr := opt.Stdout.Write(lines); printErr != nil {
			opt.Logger.Warn("builtin cannot print", "vertex", opt.Vertex, "error", printErr)
		}
		return out, err
	}
	return nil
}

// Transformers.

// arrived is when the message came in. It does not change when the batch is tried again, as the clock would.
func arrived(m *flow.Message) int64 { return cmp.Or(m.Ingested, time.Now().UnixNano()) }

func assignEventTime(m *flow.Message) (bool, error) {
	m.EventTime = arrived(m)
	return true, nil
}

func bypassTransformer(m *flow.Message) (bool, error) {
	m.EventTime = arrived(m)
	return bypassCat(m)
}

var (
	year2022, year2023    = time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano(), time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	withinTags, afterTags = []string{"within_year_2022"}, []string{"after_year_2022"}
)

func eventTimeFilter(m *flow.Message) (bool, error) {
	switch {
	case m.EventTime < year2022:
		return false, nil
	case m.EventTime < year2023:
		m.EventTime, m.Tags = year2022, withinTags
	default:
		m.EventTime, m.Tags = year2023, afterTags
	}
	return true, nil
}

func metadataEventTime(m *flow.Message) (bool, error) {
	user, err := userGroups(m.Metadata)
	if err != nil {
		return false, err
	}
	m.EventTime = arrived(m)
	user.set("event-time-group", "event-time", []byte(time.Unix(0, m.EventTime).UTC().Format(time.RFC3339)))
	m.Metadata = withUserGroups(m.Metadata, user)
	return true, nil
}
