// Package builtin has the maps and transformers that Levada brings along: named functions and equivalents of the sample functions of Numaflow, which run in
// this process. The package catalogue names them. Two things differ from the samples on purpose: a message that cannot be processed is Broken with the
// reason, where a sample ends its process, and keys, headers and metadata are kept, where a sample drops them.
package builtin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/flow/metadata"
)

// Map makes one outcome for each message. It may be called concurrently, keeps no state, and gives the same results when it is called again with the same
// messages, except where its description speaks of the present time. Results have what their message had (Pos and ID too, until the caller sets them)
// but for what the function changes. The only error is that ctx ended.
type Map func(ctx context.Context, in []flow.Message) ([]function.Outcome, error)

// One processes one message: it changes m, a copy, and says whether it is a result. An error makes the message Broken.
type One func(m *flow.Message) (keep bool, err error)

// Options say what a function runs for. The zero value of each field is allowed.
type Options struct {
	Env map[string]string
	// Vertex is the name of the vertex, for logs.
	Vertex string
	// Logger gets what goes wrong. Default: nothing is logged.
	Logger *slog.Logger
	// Stdout gets what the function prints, whole lines, one Write for each block of messages. Default: io.Discard. It has to be
	// safe for concurrent use if other programs write to it.
	Stdout io.Writer
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Stdout == nil {
		o.Stdout = io.Discard
	}
	return o
}

// Each applies f to each message of a block. Results and outcomes are allocated for the block, not for each message.
func Each(f One) Map {
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
func guarded(f One, m *flow.Message) (keep bool, err error) {
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

// Cat hands each message on as it is. That costs a copy of its description, not of its payload.
func Cat(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return handOn(in), nil
}

func handOn(in []flow.Message) []function.Outcome {
	out, results := make([]function.Outcome, len(in)), make([]flow.Message, len(in))
	copy(results, in)
	for i := range out {
		out[i].Results = results[i : i+1 : i+1]
	}
	return out
}

// SlowCat hands each message on after SLEEP_SECONDS (10), all of a block at the same time.
func SlowCat(_ map[string]string, opt Options) (Map, error) {
	pause := 10 * time.Second
	if s := opt.Env["SLEEP_SECONDS"]; s != "" {
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("SLEEP_SECONDS is %q; give a whole number of seconds", s)
		}
		pause = time.Duration(n) * time.Second
	}
	return func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
			return handOn(in), nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}, nil
}

var (
	evenKeys, oddKeys = []string{"even"}, []string{"odd"}
	evenTags, oddTags = []string{"even-tag"}, []string{"odd-tag"}
)

// EvenOdd gives a whole number the key even or odd and the tag even-tag or odd-tag, and drops anything else.
func EvenOdd(m *flow.Message) (bool, error) {
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

// Flatmap makes a message of each part of the payload between commas.
func Flatmap(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
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

// BypassCat tags messages that contain fallback, on-success or primary with fallback, onSuccess or sink, and hands all on.
func BypassCat(m *flow.Message) (bool, error) {
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

// RetryTwice tags a message retry the first two times it comes, and hands it on the third time.
func RetryTwice(m *flow.Message) (bool, error) {
	user, err := metadata.User(m.Metadata)
	if err != nil {
		return false, err
	}
	passes, _ := strconv.Atoi(string(user.Get(retryGroup, retryKey)))
	if passes++; passes >= retryPasses {
		delete(user, retryGroup)
		m.Tags = nil
	} else {
		user.Set(retryGroup, retryKey, []byte(strconv.Itoa(passes)))
		m.Tags = retryTags
	}
	m.Metadata = metadata.WithUser(m.Metadata, user)
	return true, nil
}

// Tickgen makes {"Value":...,"Time":...} of {"Data":{"value":...},"Createdts":...}, and drops what is not JSON.
func Tickgen(m *flow.Message) (bool, error) {
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

// Metadata adds user metadata map-group/map-key=map-value, and prints the groups that were there.
func Metadata(_ map[string]string, opt Options) (Map, error) {
	opt = opt.withDefaults()
	var mu sync.Mutex
	return func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		var lines []byte
		out, err := Each(func(m *flow.Message) (bool, error) {
			user, err := metadata.User(m.Metadata)
			if err != nil {
				return false, err
			}
			// The words are what Numaflow's tests search for.
			lines = fmt.Appendf(lines, "Groups at mapper: [%s]\n", flow.Printable([]byte(strings.Join(user.Names(), " "))))
			user.Set("map-group", "map-key", []byte("map-value"))
			m.Metadata = metadata.WithUser(m.Metadata, user)
			return true, nil
		})(ctx, in)
		mu.Lock()
		defer mu.Unlock()
		if _, printErr := opt.Stdout.Write(lines); printErr != nil {
			opt.Logger.Warn("builtin cannot print", "vertex", opt.Vertex, "error", printErr)
		}
		return out, err
	}, nil
}

// Transformers.

// arrived is when the message came in. It does not change when the batch is tried again, as the clock would.
func arrived(m *flow.Message) int64 { return cmp.Or(m.Ingested, time.Now().UnixNano()) }

// AssignEventTime sets the event time to when the message came in.
func AssignEventTime(m *flow.Message) (bool, error) {
	m.EventTime = arrived(m)
	return true, nil
}

// BypassTransformer tags as BypassCat, and sets the event time to when the message came in.
func BypassTransformer(m *flow.Message) (bool, error) {
	m.EventTime = arrived(m)
	return BypassCat(m)
}

var (
	year2022, year2023    = time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano(), time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	withinTags, afterTags = []string{"within_year_2022"}, []string{"after_year_2022"}
)

// EventTimeFilter drops what is older than 2022, tags the rest and sets its event time to the start of 2022 or 2023.
func EventTimeFilter(m *flow.Message) (bool, error) {
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

// MetadataEventTime sets the event time to when the message came in, and writes it to user metadata event-time-group/event-time.
func MetadataEventTime(m *flow.Message) (bool, error) {
	user, err := metadata.User(m.Metadata)
	if err != nil {
		return false, err
	}
	m.EventTime = arrived(m)
	user.Set("event-time-group", "event-time", []byte(time.Unix(0, m.EventTime).UTC().Format(time.RFC3339)))
	m.Metadata = metadata.WithUser(m.Metadata, user)
	return true, nil
}
