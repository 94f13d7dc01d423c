package httpsource

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/levada-io/levada/internal/flow"
)

// Headers that mean something to us, and are not passed on.
const (
	idHeader        = "X-Numaflow-Id"
	eventTimeHeader = "X-Numaflow-Event-Time"
	keysHeader      = "X-Numaflow-Keys"
)

// notForwarded are ours, a secret, or about the connection.
var notForwarded = map[string]bool{
	idHeader: true, eventTimeHeader: true, keysHeader: true,
	"Authorization": true, "Proxy-Authorization": true,
	"Connection": true, "Keep-Alive": true, "Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true, "Expect": true,
}

func (r *Reader) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("POST /vertices/"+r.cfg.Vertex, r.post)
	return http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		// Also for what is answered without reading the payload: the server reads the rest of it, to use the connection again.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(r.cfg.RateWindow))
		mux.ServeHTTP(w, in)
	})
}

// refusal is an answer other than 200.
type refusal struct {
	status int
	text   string
}

func (r *Reader) post(w http.ResponseWriter, in *http.Request) {
	q, no := r.accept(w, in)
	if no != nil {
		refuse(w, no)
		return
	}
	// The deadline for the payload has done its work. Left in place it would end the wait for the answer as if the sender had gone.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	select {
	case status := <-q.answer:
		switch status {
		case http.StatusOK:
			w.WriteHeader(status)
		case http.StatusServiceUnavailable:
			refuse(w, &refusal{status, "the source is closing; send the message again"})
		default:
			refuse(w, &refusal{status, "the pipeline could not take the message; send it again"})
		}
	case <-in.Context().Done():
		// The sender is gone; the message goes on, and a repetition is recognised by its id. Returning would answer 200.
		panic(http.ErrAbortHandler)
	}
}

func refuse(w http.ResponseWriter, no *refusal) {
	if no.status == http.StatusTooManyRequests || no.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	http.Error(w, no.text, no.status)
}

// accept reads the message and puts it into the queue.
func (r *Reader) accept(w http.ResponseWriter, in *http.Request) (*request, *refusal) {
	if !r.allowed(in) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return nil, &refusal{http.StatusUnauthorized, "the bearer token is missing or wrong"}
	}
	now := time.Now()
	eventTime := now.UnixNano()
	if text := in.Header.Get(eventTimeHeader); text != "" {
		ms, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil || ms > maxMilliseconds || ms < -maxMilliseconds {
			return nil, &refusal{http.StatusBadRequest, fmt.Sprintf("%s: %q is not a time in milliseconds since 1970", eventTimeHeader, text)}
		}
		eventTime = ms * int64(time.Millisecond)
	}
	if no := checkText(in.Header); no != nil {
		return nil, no
	}
	if in.ContentLength > r.cfg.MaxBody {
		return nil, r.tooLarge()
	}
	if no := r.room(max(0, in.ContentLength)); no != nil {
		return nil, no
	}
	value, no := r.body(w, in)
	if no != nil {
		return nil, no
	}
	q := &request{size: int64(cap(value)), answer: make(chan int, 1)}
	q.message = flow.Message{
		ID: in.Header.Get(idHeader), Keys: keys(in.Header.Get(keysHeader)), Value: value,
		EventTime: eventTime, Ingested: now.UnixNano(), Headers: headers(in.Header),
	}
	if q.message.ID == "" {
		q.message.ID = uuid7(now)
	}
	if no := r.enqueue(q); no != nil {
		return nil, no
	}
	return q, nil
}

// checkText refuses what would become text of a message and is none. Functions get headers, keys and ids as strings of protobuf, which are UTF-8.
func checkText(in http.Header) *refusal {
	for name, values := range in {
		if notForwarded[name] && name != idHeader && name != keysHeader {
			continue
		}
		for _, value := range values {
			if !utf8.ValidString(value) {
				return &refusal{http.StatusBadRequest, fmt.Sprintf("header %s: %q is not UTF-8; encode the value, for instance with percent signs or base64", name, value)}
			}
		}
	}
	return nil
}

// maxMilliseconds keeps event times within what nanoseconds can say: the years 1678 to 2262.
const maxMilliseconds = 1<<63/1_000_000 - 1

func (r *Reader) allowed(in *http.Request) bool {
	if r.cfg.Token == "" {
		return true
	}
	scheme, token, _ := strings.Cut(in.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare([]byte(strings.TrimSpace(token)), []byte(r.cfg.Token)) == 1
}

func (r *Reader) tooLarge() *refusal {
	return &refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("the payload has more than %d bytes", r.cfg.MaxBody)}
}

// room refuses a message for which there is no room now, before its payload is read.
func (r *Reader) room(size int64) *refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.roomLocked(size)
}

func (r *Reader) roomLocked(size int64) *refusal {
	switch {
	case r.over:
		return &refusal{http.StatusServiceUnavailable, "the source is closing; send the message again"}
	case len(r.inFlight) >= r.cfg.MaxInFlight || r.bytes+size > r.cfg.MaxBytes:
		return &refusal{http.StatusTooManyRequests, "too many messages are in flight; send the message again"}
	}
	return nil
}

// enqueue cannot wait: the queue has room for all that may be in flight.
func (r *Reader) enqueue(q *request) *refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inFlight[q.message.ID] != nil && !r.over {
		return &refusal{http.StatusConflict, fmt.Sprintf("a message with the id %q is in flight", q.message.ID)}
	}
	if no := r.roomLocked(q.size); no != nil {
		return no
	}
	r.inFlight[q.message.ID] = q
	r.bytes += q.size
	r.queue <- q
	return nil
}

func keys(list string) []string {
	var all []string
	for key := range strings.SplitSeq(list, ",") {
		if key = strings.TrimSpace(key); key != "" {
			all = append(all, key)
		}
	}
	return all
}

// headers are passed on in lower case, as HTTP/2 sends them and as Numaflow's functions find them.
func headers(in http.Header) flow.Headers {
	var h flow.Headers
	for name, values := range in {
		if !notForwarded[name] {
			h = flow.AppendHeader(h, strings.ToLower(name), strings.Join(values, ", "))
		}
	}
	return h
}

// uuid7 is a UUID whose beginning is the time, so that ids sort as they came (RFC 9562).
func uuid7(now time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(now.UnixMilli())<<16)
	_, _ = rand.Read(b[6:]) // never fails
	b[6] = b[6]&0x0f | 0x70
	b[8] = b[8]&0x3f | 0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
