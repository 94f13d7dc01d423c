package httpsource_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/httpsource"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
	"github.com/levada-io/levada/internal/testserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, cfg httpsource.Config) *httpsource.Reader {
	t.Helper()
	cfg.Vertex = "in"
	if cfg.HTTP == "" && cfg.HTTPS == "" {
		cfg.HTTP = "127.0.0.1:0"
	}
	r, err := httpsource.New(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = r.Close(ctx)
	})
	return r
}

// senders is a client that keeps a message until the answer is 200, as the contract asks of it.
type senders struct {
	client http.Client
	busy   sync.WaitGroup
}

func (s *senders) send(ctx context.Context, url, id, payload string) {
	s.busy.Go(func() {
		for ctx.Err() == nil {
			in, _ := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(payload))
			in.Header.Set("X-Numaflow-Id", id)
			out, err := s.client.Do(in)
			if err != nil {
				time.Sleep(time.Millisecond) // nobody listens at the moment
				continue
			}
			_, _ = io.Copy(io.Discard, out.Body)
			_ = out.Body.Close()
			if out.StatusCode == http.StatusOK {
				return
			}
		}
	})
}

func TestConformance(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Harness {
		address := testserver.FreeAddress(t)
		ctx, cancel := context.WithCancel(context.Background())
		s := &senders{client: http.Client{Transport: &http.Transport{MaxConnsPerHost: 100, MaxIdleConnsPerHost: 100}}}
		t.Cleanup(func() {
			cancel()
			s.busy.Wait()
			s.client.CloseIdleConnections()
		})
		return sourcetest.Harness{
			Unordered: true,
			Open:      func(t *testing.T) source.Reader { return open(t, httpsource.Config{HTTP: address}) },
			Produce: func(_ *testing.T, from, to int) {
				for i := from; i < to; i++ {
					s.send(ctx, "http://"+address+"/vertices/in", fmt.Sprintf("id-%d", i), sourcetest.Payload(i))
				}
			},
		}
	})
}

// post sends one request and returns its status, when it comes.
func post(t *testing.T, r *httpsource.Reader, payload io.Reader, headers ...string) <-chan int {
	t.Helper()
	in, err := http.NewRequest(http.MethodPost, "http://"+r.Addresses()[0].String()+"/vertices/in", payload)
	must(t, err)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, "=")
		in.Header.Add(name, value)
	}
	status := make(chan int, 1)
	go func() {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		out, err := client.Do(in)
		if err != nil {
			status <- 0
			return
		}
		_ = out.Body.Close()
		status <- out.StatusCode
	}()
	return status
}

func wantStatus(t *testing.T, status <-chan int, want int) {
	t.Helper()
	select {
	case got := <-status:
		if got != want {
			t.Fatalf("status %d, want %d", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("no answer, want %d", want)
	}
}

func read(t *testing.T, r *httpsource.Reader) *source.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b, err := r.Read(ctx, 100)
	must(t, err)
	return b
}

func TestMessage(t *testing.T) {
	r := open(t, httpsource.Config{Token: "s3cret"})
	status := post(t, r, strings.NewReader("hello"), "Authorization=Bearer s3cret",
		"X-Numaflow-Id=abc", "X-Numaflow-Event-Time=1700000000123", "X-Numaflow-Keys=a, b,,", "X-Color=red", "X-Color=blue")
	b := read(t, r)
	m := b.Messages[0]
	if m.ID != "abc" || string(m.Value) != "hello" || m.EventTime != 1700000000123e6 || strings.Join(m.Keys, "|") != "a|b" || !b.ByID {
		t.Fatalf("%+v", m)
	}
	got := map[string]string{}
	for name, value := range m.Headers.All {
		got[name] = value
	}
	if got["x-color"] != "red, blue" || got["authorization"] != "" || got["x-numaflow-id"] != "" {
		t.Fatalf("%v", got)
	}
	select {
	case s := <-status:
		t.Fatalf("answered %d before the message was safe", s)
	case <-time.After(20 * time.Millisecond):
	}
	must(t, r.Ack(t.Context(), b))
	wantStatus(t, status, 200)
}

func TestMessagesWithoutIDAreDifferent(t *testing.T) {
	r := open(t, httpsource.Config{})
	ids := map[string]bool{}
	for range 2 {
		status := post(t, r, strings.NewReader("same"))
		b := read(t, r)
		ids[b.Messages[0].ID] = true
		if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(b.Messages[0].ID) {
			t.Fatalf("%q is not a UUIDv7", b.Messages[0].ID)
		}
		must(t, r.Ack(t.Context(), b))
		wantStatus(t, status, 200)
	}
	if len(ids) != 2 {
		t.Fatal(ids)
	}
}

func TestRefusals(t *testing.T) {
	r := open(t, httpsource.Config{Token: "s3cret", MaxBody: 10, MaxInFlight: 2})
	auth := "Authorization=bearer s3cret"
	wantStatus(t, post(t, r, strings.NewReader("x")), 401)
	wantStatus(t, post(t, r, strings.NewReader("x"), "Authorization=Bearer s3cre"), 401)
	wantStatus(t, post(t, r, strings.NewReader("x"), "Authorization=s3cret"), 401)
	wantStatus(t, post(t, r, strings.NewReader("x"), auth, "X-Numaflow-Event-Time=yesterday"), 400)
	wantStatus(t, post(t, r, strings.NewReader("x"), auth, "X-Numaflow-Event-Time=9223372036854775807"), 400)
	wantStatus(t, post(t, r, strings.NewReader("elevenbytes"), auth), 413)
	wantStatus(t, post(t, r, io.MultiReader(strings.NewReader("chunked"), strings.NewReader("body")), auth), 413)

	first := post(t, r, strings.NewReader("1"), auth, "X-Numaflow-Id=1")
	b := read(t, r)
	wantStatus(t, post(t, r, strings.NewReader("1"), auth, "X-Numaflow-Id=1"), 409)
	second := post(t, r, strings.NewReader("2"), auth, "X-Numaflow-Id=2")
	b2 := read(t, r)
	wantStatus(t, post(t, r, strings.NewReader("3"), auth, "X-Numaflow-Id=3"), 429)
	must(t, r.Ack(t.Context(), b))
	wantStatus(t, first, 200)
	must(t, r.Ack(t.Context(), b2))
	wantStatus(t, second, 200)
	third := post(t, r, strings.NewReader("1"), auth, "X-Numaflow-Id=1") // there is room again, and an id that is not in flight is taken
	must(t, r.Ack(t.Context(), read(t, r)))
	wantStatus(t, third, 200)
}

func TestPayloadsTogetherAreBounded(t *testing.T) {
	r := open(t, httpsource.Config{MaxBody: 10, MaxBytes: 15})
	first := post(t, r, strings.NewReader("0123456789"))
	b := read(t, r)
	wantStatus(t, post(t, r, strings.NewReader("012345")), 429)
	must(t, r.Ack(t.Context(), b))
	wantStatus(t, first, 200)
	second := post(t, r, strings.NewReader("012345"))
	must(t, r.Ack(t.Context(), read(t, r)))
	wantStatus(t, second, 200)
}

func TestCloseAnswersAllWhoWait(t *testing.T) {
	r := open(t, httpsource.Config{})
	read1 := post(t, r, strings.NewReader("read"))
	read(t, r)
	queued := post(t, r, strings.NewReader("queued"))
	for {
		n, err := r.Pending(t.Context())
		must(t, err)
		if n == 1 {
			break
		}
	}
	must(t, r.Close(t.Context()))
	wantStatus(t, read1, 503)
	wantStatus(t, queued, 503)
	if _, err := r.Read(t.Context(), 1); err == nil {
		t.Fatal("read after Close")
	}
}

func TestSenderWhoIsGone(t *testing.T) {
	r := open(t, httpsource.Config{MaxInFlight: 1})
	ctx, cancel := context.WithCancel(t.Context())
	in, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.Addresses()[0].String()+"/vertices/in", strings.NewReader("x"))
	must(t, err)
	gone := make(chan error, 1)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	go func() {
		response, err := client.Do(in)
		if err == nil {
			_ = response.Body.Close()
		}
		gone <- err
	}()
	b := read(t, r)
	cancel()
	if err := <-gone; err == nil {
		t.Fatal("answered")
	}
	wantStatus(t, post(t, r, strings.NewReader("y")), 429) // the message is in flight all the same
	must(t, r.Ack(t.Context(), b))
	next := post(t, r, strings.NewReader("y"))
	must(t, r.Ack(t.Context(), read(t, r)))
	wantStatus(t, next, 200)
}

func TestTheAnswerMayTakeLongerThanSendingMay(t *testing.T) {
	const limit = 100 * time.Millisecond
	r := open(t, httpsource.Config{RateWindow: limit})
	patient := post(t, r, strings.NewReader("x"))
	b := read(t, r)
	slow, body := io.Pipe()
	defer body.Close()
	late := post(t, r, slow)
	_, _ = body.Write([]byte("never finished"))
	wantStatus(t, late, 408) // which comes after the limit
	select {
	case s := <-patient:
		t.Fatalf("answered %d before the message was safe", s)
	case <-time.After(limit):
	}
	must(t, r.Ack(t.Context(), b))
	wantStatus(t, patient, 200)
}

func TestTLSAndHealth(t *testing.T) {
	r := open(t, httpsource.Config{HTTPS: "127.0.0.1:0", HTTP: "127.0.0.1:0"})
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the certificate is the server's own
	}}
	defer client.CloseIdleConnections()
	for i, scheme := range []string{"https", "http"} {
		base := scheme + "://" + r.Addresses()[i].String()
		for path, want := range map[string]int{"/health": 200, "/vertices/in": 405, "/vertices/other": 404, "/": 404} {
			out, err := client.Get(base + path)
			must(t, err)
			_ = out.Body.Close()
			if out.StatusCode != want {
				t.Fatalf("GET %s%s: %d, want %d", base, path, out.StatusCode, want)
			}
		}
	}
	status := make(chan int, 1)
	go func() {
		out, err := client.Post("https://"+r.Addresses()[0].String()+"/vertices/in", "text/plain", bytes.NewReader([]byte("over TLS")))
		if err != nil {
			status <- 0
			return
		}
		_ = out.Body.Close()
		status <- out.StatusCode
	}()
	must(t, r.Ack(t.Context(), read(t, r)))
	wantStatus(t, status, 200)
}

func TestConfigErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	for words, cfg := range map[string]httpsource.Config{
		"vertex: ":           {HTTP: "127.0.0.1:0"},
		"one address":        {Vertex: "in"},
		"http: ":             {Vertex: "in", HTTPS: "127.0.0.1:0", HTTP: taken.Addr().String()},
		"must not be":        {Vertex: "in", HTTP: "127.0.0.1:0", MaxBody: -1},
		"https: listen tcp:": {Vertex: "in", HTTPS: "nowhere"},
	} {
		if _, err := httpsource.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Fatalf("%v does not say %q", err, words)
		}
	}
}
