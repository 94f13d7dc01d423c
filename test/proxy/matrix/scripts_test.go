package matrix

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/test/proxy/fakeh2"
)

const (
	rstWhy  = "gRPC over HTTP/2, Errors: a table from RST_STREAM codes to statuses"
	httpWhy = "gRPC, HTTP to gRPC status code mapping: a reply that is not gRPC"
	lostWhy = "the connection is lost: every gRPC client says UNAVAILABLE of its own connection"
	ownWhy  = "the backend's own status"
	evilWhy = "gRPC clients take a missing or senseless status for UNKNOWN; grpc-go says INTERNAL for trailers that never came"
	tornWhy = "a message is torn: INTERNAL, as grpc-go says; other clients drop the rest and take the status"
)

// verdict is what a client may make of a script.
type verdict struct {
	codes []codes.Code
	by    by
	why   string
}

func may(by by, why string, codes ...codes.Code) verdict { return verdict{codes, by, why} }

// verdicts are by the name of the script. A name that is not here is taken without its last part, as rst-mid.
var verdicts = map[string]verdict{
	"rst-mid": may(either, rstWhy, codes.Internal), "rst-pre": may(either, rstWhy, codes.Internal),
	// grpc-go has a table of its own for FLOW_CONTROL_ERROR.
	"rst-mid-3": may(either, rstWhy, codes.Internal, codes.ResourceExhausted), "rst-pre-3": may(either, rstWhy, codes.Internal, codes.ResourceExhausted),
	"rst-mid-7": may(either, rstWhy, codes.Unavailable), "rst-pre-7": may(either, rstWhy, codes.Unavailable),
	"rst-mid-8": may(either, rstWhy, codes.Canceled), "rst-pre-8": may(either, rstWhy, codes.Canceled),
	"rst-mid-11": may(either, rstWhy, codes.ResourceExhausted), "rst-pre-11": may(either, rstWhy, codes.ResourceExhausted),
	"rst-mid-12": may(either, rstWhy, codes.PermissionDenied), "rst-pre-12": may(either, rstWhy, codes.PermissionDenied),

	"goaway-unprocessed-retry":         may(byBackend, "RFC 9113, 6.8: streams above the last one were not processed and may be sent again", codes.OK),
	"goaway-unprocessed-noclose-retry": may(byBackend, "RFC 9113, 6.8: streams above the last one were not processed and may be sent again", codes.OK),
	"refused-retry":                    may(byBackend, "RFC 9113, 8.7: REFUSED_STREAM says that nothing was processed", codes.OK),
	"refused-after-headers":            may(either, "an answer had begun, so it is not sent again", codes.Unavailable),
	"refused-in-first-message":         may(either, "an answer had begun, so it is not sent again", codes.Unavailable),
	"goaway-then-finish":               may(byBackend, ownWhy, codes.OK),
	"double-goaway-then-status":        may(byBackend, ownWhy, codes.FailedPrecondition),
	"goaway-mid-then-fin":              may(byProxy, lostWhy, codes.Unavailable),
	"goaway-mid-then-rst":              may(byProxy, lostWhy, codes.Unavailable),
	"goaway-pre-then-fin":              may(byProxy, lostWhy, codes.Unavailable),
	"goaway-calm-mid-fin":              may(byProxy, lostWhy, codes.Unavailable),
	"goaway-internal-mid-fin":          may(byProxy, lostWhy, codes.Unavailable),

	"fin-pre":             may(byProxy, lostWhy, codes.Unavailable),
	"tcprst-pre":          may(byProxy, lostWhy, codes.Unavailable),
	"fin-mid":             may(byProxy, lostWhy, codes.Unavailable),
	"tcprst-mid":          may(byProxy, lostWhy, codes.Unavailable),
	"fin-mid-message":     may(byProxy, lostWhy, codes.Unavailable),
	"fin-mid-big-message": may(either, lostWhy, codes.Unavailable), // which goes through in parts: nothing but a reset can follow
	"fin-after-headers":   may(byProxy, lostWhy, codes.Unavailable),
	"badframe-mid":        may(byProxy, "RFC 9113, 6.1: an error of the connection, which is lost with it", codes.Unavailable),

	"eos-no-trailers":       may(either, evilWhy, codes.Internal, codes.Unknown),
	"headers-eos-no-status": may(either, evilWhy, codes.Internal, codes.Unknown),
	"trailers-no-status":    may(either, evilWhy, codes.Internal, codes.Unknown),
	"trailers-status-abc":   may(either, evilWhy, codes.Internal, codes.Unknown),
	"trailers-status-99":    may(either, "a number that has no name yet: untouched, or UNKNOWN in clients that know their list", 99, codes.Unknown),
	"truncated-msg-then-ok": may(either, tornWhy, codes.Internal, codes.OK),
	"truncated-msg-then-14": may(either, tornWhy, codes.Internal, codes.Unavailable),
	"http200-html":          may(either, httpWhy, codes.Unknown),
	"http200-noct":          may(either, "grpc-go wants the content-type, others are content with a grpc-status", codes.Unknown, codes.OK),
	"info103":               may(byBackend, "RFC 9113, 8.1: interim headers come before those that count", codes.OK),
	"msg-then-status5":      may(byBackend, ownWhy, codes.NotFound),
	"trailers-only-14":      may(byBackend, ownWhy, codes.Unavailable),
	"trailers-only-0":       may(byBackend, ownWhy, codes.OK),
	"trailers-only-16":      may(byBackend, ownWhy, codes.Unauthenticated),
	"early-status-rst":      may(byBackend, ownWhy, codes.ResourceExhausted),

	"http":     may(either, httpWhy, codes.Unknown),
	"http-400": may(either, httpWhy, codes.Internal), "http-401": may(either, httpWhy, codes.Unauthenticated),
	"http-403": may(either, httpWhy, codes.PermissionDenied), "http-404": may(either, httpWhy, codes.Unimplemented),
	"http-429": may(either, httpWhy, codes.Unavailable), "http-502": may(either, httpWhy, codes.Unavailable),
	"http-503": may(either, httpWhy, codes.Unavailable), "http-504": may(either, httpWhy, codes.Unavailable),

	"msg-then-status5-fin":        may(byBackend, ownWhy, codes.NotFound),
	"msg-then-status5-tcprst":     may(byBackend, ownWhy, codes.NotFound),
	"trailers-only-16-fin":        may(byBackend, ownWhy, codes.Unauthenticated),
	"goaway-msg-then-status5-fin": may(byBackend, ownWhy, codes.NotFound),
	"http-503-fin":                may(either, httpWhy, codes.Unavailable),
}

// ownCodes are what one client makes of a script by a table of its own, of its own connection as of the proxy's: allowed to it, besides what the verdict allows to all.
var ownCodes = map[string]map[string]codes.Code{
	// Http2Error in grpc-java's GrpcUtil: NO_ERROR is UNAVAILABLE, HTTP_1_1_REQUIRED is UNKNOWN. gRPC's table does not have the second one.
	"Java": {"rst-mid-0": codes.Unavailable, "rst-pre-0": codes.Unavailable, "rst-mid-13": codes.Unknown, "rst-pre-13": codes.Unknown},
}

// scores are how many cells of Go and Node are right, at least and at most, of the paths that are measured to show that the tests see what is wrong.
var scores = map[string][2]int{"direct": {144, 152}, "nginx": {78, 98}, "haproxy": {80, 100}, "nghttpx": {108, 120}}

func verdictOf(script string) (verdict, bool) {
	v, ok := verdicts[script]
	if !ok {
		v, ok = verdicts[script[:max(0, strings.LastIndex(script, "-"))]]
	}
	return v, ok
}

// cell is what became of a script's call.
type cell struct {
	event
	attempts int
	crashed  bool // the client's process did, and did not tell anything
	wrong    []string
}

const (
	// hang is when a call that has no end is given up.
	hang = 5 * time.Second
	// mostAttempts of a call that is always refused: proxies and clients may send again once each.
	mostAttempts = 4
)

func TestScripts(t *testing.T) {
	path, clients := chosenPath(t), startClients(t)
	scripts := fakeh2.Scripts()
	columns := make([][]cell, len(clientNames))
	t.Run("client", func(t *testing.T) {
		for i, name := range clientNames {
			if clients[name] == nil {
				continue
			}
			columns[i] = make([]cell, len(scripts))
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				// Each client has a backend and a proxy of its own: what a script does to its connection is not to end the call of another.
				backend, err := fakeh2.Listen("127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer backend.Close()
				target := open(t, path, backend.Addr(), usual).addr
				client := clients[name]
				for j, script := range scripts {
					id := ask(t, client, script.Name, target, script)
					if columns[i][j] = hear(t, path, client, backend, id, script); columns[i][j].crashed {
						client = client.again(t)
					}
					client.send(t, order{Op: "close", Channel: script.Name})
					if wrong := columns[i][j].wrong; path == levada && len(wrong) > 0 {
						t.Errorf("%s: %s (%q)", script.Name, strings.Join(wrong, "; "), columns[i][j].Text)
					}
				}
			})
		}
	})
	score, of := 0, 0
	var table strings.Builder
	fmt.Fprintf(&table, "%s: %s (a cell that is wrong has a *)\n%-34s%-22s%-12s%-12s%s\n", path, strings.Join(clientNames, "/"), "script", "codes", "may be", "attempts", "ended by the proxy")
	for j, script := range scripts {
		var got, attempts, ended []string
		for i := range clientNames {
			if i < 2 { // Go and Node, which have been counted elsewhere
				of++
			}
			if columns[i] == nil || columns[i][j].Event == "" && !columns[i][j].crashed {
				got = append(got, "-")
				continue
			}
			c := columns[i][j]
			mark := "*"
			if len(c.wrong) == 0 {
				mark = ""
			}
			if i < 2 && mark == "" {
				score++
			}
			got = append(got, fmt.Sprint(c.Code)+mark)
			attempts = append(attempts, fmt.Sprint(c.attempts))
			ended = append(ended, c.Ended)
		}
		v, _ := verdictOf(script.Name)
		fmt.Fprintf(&table, "%-34s%-22s%-12s%-12s%s\n", script.Name, strings.Join(got, "/"), numbers(v.codes), strings.Join(slices.Compact(attempts), "/"),
			strings.Join(slices.Compact(ended), "/"))
	}
	fmt.Fprintf(&table, "score of %s (Go and Node): %d of %d", path, score, of)
	t.Log(table.String())
	if bounds, ok := scores[path]; ok && columns[0] != nil && columns[1] != nil && (score < bounds[0] || score > bounds[1]) {
		t.Errorf("the score is %d, measured were %d to %d", score, bounds[0], bounds[1])
	}
}

// What a script does to its own stream is not felt by others on the same connections.
func TestScriptsTogether(t *testing.T) {
	if path := chosenPath(t); path != levada {
		t.Skipf("SKIPPED for %s: calls of one connection are not looked at together; TestScripts shows them one by one", path)
	}
	clients := startClients(t)
	backend, err := fakeh2.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	target := open(t, levada, backend.Addr(), usual).addr
	scripts := slices.DeleteFunc(fakeh2.Scripts(), func(s fakeh2.Script) bool { return s.Connection })
	for _, client := range clients {
		for _, script := range scripts {
			ask(t, client, "together", target, script)
		}
	}
	for _, client := range clients {
		for _, script := range scripts {
			if c := hear(t, levada, client, backend, script.Name+" "+client.name, script); len(c.wrong) > 0 {
				t.Errorf("%s, %s: %s (%q)", script.Name, client.name, strings.Join(c.wrong, "; "), c.Text)
			}
		}
	}
	t.Logf("%d calls of %d scripts over one connection of each client", len(clients)*len(scripts), len(scripts))
}

// ask makes the call of a script, and returns its id.
func ask(t *testing.T, client *process, channel, target string, script fakeh2.Script) string {
	t.Helper()
	id := script.Name + " " + client.name
	client.send(t, order{Op: "call", ID: id, Channel: channel, Target: target, Path: fakeh2.Path(script.Name), Deadline: hang.Milliseconds()})
	return id
}

// hear waits for the end of a script's call, and says what is wrong with it.
func hear(t *testing.T, path string, client *process, server *fakeh2.Server, id string, script fakeh2.Script) cell {
	t.Helper()
	v, ok := verdictOf(script.Name)
	if !ok {
		t.Fatalf("there is no verdict for %s", script.Name)
	}
	var c cell
	wrong := func(format string, args ...any) { c.wrong = append(c.wrong, fmt.Sprintf(format, args...)) }
	var err error
	switch c.event, err = client.wait(t.Context(), id, "end", timely); {
	case errors.Is(err, errEnded):
		c.Code, c.crashed = -1, true // as grpcio 1.51 and the C++ library below it do at an answer without a status
		wrong("the client crashed")
	case err != nil:
		t.Fatalf("%s: %s tells no end: %v", script.Name, client.name, err)
	}
	c.attempts = server.Attempts(id)
	own, hasOwn := ownCodes[client.name][script.Name]
	if !slices.Contains(v.codes, codes.Code(c.Code)) && !(hasOwn && codes.Code(c.Code) == own) {
		wrong("code %d, may be %s: %s", c.Code, numbers(v.codes), v.why)
	}
	if processed := max(0, c.attempts-script.Refuses); processed > 1 {
		wrong("the backend processed it %d times", processed)
	}
	if most := min(script.Refuses, mostAttempts-1) + 1; c.attempts < 1 || c.attempts > most {
		wrong("the backend got it %d times, want 1 to %d", c.attempts, most)
	}
	if c.Messages > script.Messages {
		wrong("%d messages, the backend sent %d", c.Messages, script.Messages)
	}
	if c.Wrong != "" {
		wrong("%s", c.Wrong)
	}
	if v.by == byBackend && c.Messages != script.Messages {
		wrong("%d messages, the backend sent %d", c.Messages, script.Messages)
	}
	if what := v.by.wrong(path, c.Ended); what != "" && !c.crashed {
		wrong("%s", what)
	}
	return c
}

func numbers(all []codes.Code) string {
	var n []string
	for _, c := range all {
		n = append(n, fmt.Sprint(int(c)))
	}
	return strings.Join(n, ", ")
}
