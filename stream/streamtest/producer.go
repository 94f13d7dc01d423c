package streamtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
)

// ProducerUnderTest is a producer of levada.stream.v1 in any language, and what it serves.
type ProducerUnderTest struct {
	// Conn is a connection to it.
	Conn grpc.ClientConnInterface
	// Stream is a stream that ends, and does not change while the test runs.
	Stream string
	// Query is the stream's query.
	Query []byte
	// Count is how many records the stream has. At least 10, so that there is something to go on from.
	Count int
	// Waiting, if not empty, is a stream of the same query that does not end during the test: after its last record its source
	// waits for more. It is what marks, drains and cancelled readers are tested on.
	Waiting string
	// Drain, if not nil, tells the producer to shut down, as a SIGTERM does, and does not wait for it.
	Drain func()
}

// RunProducer checks over the wire that a producer keeps the contract of levada.stream.v1, which docs/streams-protocol.md specifies: so it
// tests producers in other languages. open is called once for each subtest, and cleans up with t.Cleanup; the producer may be one that
// the subtests share, but for the last one, Drain, which ends it. A bad record counts as a record.
func RunProducer(t *testing.T, open func(t *testing.T) ProducerUnderTest) {
	t.Helper()
	for _, check := range producerChecks {
		t.Run(check.name, func(t *testing.T) {
			p := open(t)
			if p.Count < 10 {
				t.Fatalf("ProducerUnderTest.Count is %d: a producer that is tested has at least 10 records", p.Count)
			}
			switch err := check.run(p); {
			case errors.Is(err, errNotGiven):
				t.Skip(err)
			case err != nil:
				t.Fatal(err)
			}
		})
	}
}

// errNotGiven: what the check needs is not there. A producer without it is tested with less.
var errNotGiven = errors.New("not tested: the ProducerUnderTest has no Waiting stream, or no Drain")

// producerChecks are functions of the producer, not of a test, so that the suite can be tested on bad producers.
var producerChecks = []struct {
	name string
	run  func(ProducerUnderTest) error
}{
	{"WholeStream", checkWholeStream},
	{"SameTwice", checkStreamTwice},
	{"ResumeAfterEachToken", checkResumeAfterTokens},
	{"ResumeInsideBatches", checkResumeInside},
	{"ResumeAtTheEnd", checkResumeAtEnd},
	{"BatchLimits", checkBatchLimits},
	{"UnknownStreamIsRefused", checkUnknownStream},
	{"DamagedTokensAreRefused", checkDamagedTokens},
	{"ForeignQueryIsRefused", checkForeignQuery},
	{"NumberBeforeTokenIsRefused", checkNumberBeforeToken},
	{"ConcurrentReaders", checkConcurrentReaders},
	{"CancelledReaders", checkCancelledReaders},
	{"MarksOnASilentStream", checkMarks},
	{"Drain", checkDrain},
}

// producerPatience is how long anything may take that a producer does at once, on a busy machine. It is also the silence after which readers
// of this module open a stream again, so a mark must come sooner.
const producerPatience = 15 * time.Second

// reading is what a producer has sent on one stream, checked as it came.
type reading struct {
	marks   []*streamv1.Mark
	batches []*streamv1.Batch
	end     *streamv1.End
	drain   *streamv1.Drain
}

// records returns the records, numbered.
func (r reading) records() (all []stream.Record) {
	for _, b := range r.batches {
		for i, record := range b.GetRecords() {
			all = append(all, stream.Record{Seq: b.GetFirstSeq() + uint64(i), Key: record.GetKey(), Value: record.GetValue(), Bad: record.GetBad()})
		}
	}
	return all
}

func (p ProducerUnderTest) request() *streamv1.ReadRequest {
	return &streamv1.ReadRequest{Stream: p.Stream, Query: p.Query, Job: "conformance", Epoch: 1}
}

// read reads a stream until it ends, or until enough returns true, and checks each frame against those before it. at is what the reader has: the
// last record's number and the digest up to there.
func (p ProducerUnderTest) read(ctx context.Context, req *streamv1.ReadRequest, seq uint64, digest stream.Digest, enough func(reading) bool) (r reading, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(producerPatience, func() {
		cancel(fmt.Errorf("no frame came for %v: a mark is due at least each 5 s", producerPatience))
	})
	defer silence.Stop()
	in, err := streamv1.NewStreamClient(p.Conn).Read(ctx, req, grpc.MaxCallRecvMsgSize(64<<20))
	if err != nil {
		return r, err
	}
	var lastKey []byte
	for first := true; ; first = false {
		frame, err := in.Recv()
		silence.Reset(producerPatience)
		if err == nil {
			err = r.place(frame, first, req)
		} else if err = r.ended(err); err == nil {
			return r, nil
		}
		switch {
		case err != nil && ctx.Err() != nil:
			return r, context.Cause(ctx)
		case err != nil:
			return r, err
		}
		if f, ok := frame.GetFrame().(*streamv1.Frame_Batch); ok {
			if seq, lastKey, digest, err = checkBatch(f.Batch, seq, lastKey, digest); err == nil {
				r.batches = append(r.batches, f.Batch)
			}
		} else {
			err = r.control(frame, seq, digest)
		}
		if err != nil || enough != nil && enough(r) {
			return r, err
		}
	}
}

// ended returns nil if the stream may end so.
func (r *reading) ended(err error) error {
	switch {
	case err == io.EOF && r.end == nil && r.drain == nil:
		return errors.New("the stream ended with OK, and neither with End nor with Drain")
	case err == io.EOF:
		return nil
	}
	return err
}

// place checks that a frame may come here: a Mark first, and none after the last.
func (r *reading) place(frame *streamv1.Frame, first bool, req *streamv1.ReadRequest) error {
	switch {
	case r.end != nil || r.drain != nil:
		return fmt.Errorf("a frame came after the last one: %v", frame)
	case first && frame.GetMark() == nil:
		return fmt.Errorf("the first frame is not a Mark: %v", frame)
	case first && !bytes.Equal(frame.GetMark().GetToken(), req.GetAfter()) && len(req.GetAfter()) > 0:
		return errors.New("the first Mark names another position than the one that the reader gave")
	}
	return nil
}

// control takes a frame without records. seq and digest are those of the records before it.
func (r *reading) control(frame *streamv1.Frame, seq uint64, digest stream.Digest) error {
	switch f := frame.GetFrame().(type) {
	case *streamv1.Frame_Mark:
		if f.Mark.GetNextSeq() != seq+1 {
			return fmt.Errorf("a Mark says that record %d comes next, and record %d does", f.Mark.GetNextSeq(), seq+1)
		}
		if len(f.Mark.GetToken()) == 0 {
			return errors.New("a Mark has no token")
		}
		r.marks = append(r.marks, f.Mark)
	case *streamv1.Frame_Drain:
		r.drain = f.Drain
	case *streamv1.Frame_End:
		if f.End.GetCount() != seq || !bytes.Equal(f.End.GetDigest(), digest[:]) || len(f.End.GetToken()) == 0 {
			return fmt.Errorf("End says %d records with digest %x and a token of %d bytes; %d with %v came",
				f.End.GetCount(), f.End.GetDigest(), len(f.End.GetToken()), seq, digest)
		}
		r.end = f.End
	default:
		return fmt.Errorf("a frame of no kind that is known: %v", frame)
	}
	return nil
}

func checkBatch(b *streamv1.Batch, seq uint64, lastKey []byte, digest stream.Digest) (uint64, []byte, stream.Digest, error) {
	if b.GetFirstSeq() != seq+1 {
		return seq, nil, digest, fmt.Errorf("a batch begins with record %d, and record %d comes next", b.GetFirstSeq(), seq+1)
	}
	if int(b.GetCount()) != len(b.GetRecords()) || b.GetCount() == 0 || len(b.GetToken()) == 0 {
		return seq, nil, digest, fmt.Errorf("the batch of record %d says that it has %d records, has %d, and a token of %d bytes",
			b.GetFirstSeq(), b.GetCount(), len(b.GetRecords()), len(b.GetToken()))
	}
	for _, r := range b.GetRecords() {
		seq++
		switch {
		case bytes.Compare(r.GetKey(), lastKey) <= 0:
			return seq, nil, digest, fmt.Errorf("record %d has key %q, after %q: keys grow strictly", seq, r.GetKey(), lastKey)
		case len(r.GetKey()) > 16<<10:
			return seq, nil, digest, fmt.Errorf("the key of record %d has %d bytes, and 16 KiB are allowed", seq, len(r.GetKey()))
		case r.GetBad() != "" && len(r.GetValue()) > 0:
			return seq, nil, digest, fmt.Errorf("record %d is bad, and has a value", seq)
		}
		lastKey = r.GetKey()
		digest.Add(stream.Record{Seq: seq, Key: r.GetKey(), Value: r.GetValue()})
	}
	if !bytes.Equal(b.GetDigest(), digest[:]) {
		return seq, nil, digest, fmt.Errorf("the batch up to record %d has digest %x, and its records, with those before, have %v", seq, b.GetDigest(), digest)
	}
	return seq, lastKey, digest, nil
}

// whole reads the whole stream.
func (p ProducerUnderTest) whole() (reading, []stream.Record, error) {
	r, err := p.read(context.Background(), p.request(), 0, stream.Digest{}, nil)
	if err != nil {
		return r, nil, err
	}
	all := r.records()
	switch {
	case r.end == nil:
		err = fmt.Errorf("a stream that ends was drained: %v", r.drain)
	case len(all) != p.Count:
		err = fmt.Errorf("%d records came, and there are %d", len(all), p.Count)
	}
	return r, all, err
}

// from reads a stream from a position on, and compares what comes with the rest of all records.
func (p ProducerUnderTest) from(req *streamv1.ReadRequest, seq uint64, all []stream.Record) (reading, error) {
	var digest stream.Digest
	for _, record := range all[:seq] {
		digest.Add(record)
	}
	r, err := p.read(context.Background(), req, seq, digest, nil)
	if err != nil {
		return r, fmt.Errorf("after record %d: %w", seq, err)
	}
	if !slices.EqualFunc(r.records(), all[seq:], sameRecord) {
		return r, fmt.Errorf("after record %d came %d records that are not the %d that follow it", seq, len(r.records()), len(all)-int(seq))
	}
	if r.end == nil {
		return r, fmt.Errorf("after record %d: no End came", seq)
	}
	return r, nil
}

func sameRecord(a, b stream.Record) bool {
	return a.Seq == b.Seq && bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) && a.Bad == b.Bad
}

func checkWholeStream(p ProducerUnderTest) error { _, _, err := p.whole(); return err }

// checkStreamTwice: a reader that begins again must find the same.
func checkStreamTwice(p ProducerUnderTest) error {
	_, all, err := p.whole()
	if err != nil {
		return err
	}
	_, err = p.from(p.request(), 0, all)
	return err
}

// inBatches reads the stream in batches of a few records, so that there are many tokens.
func (p ProducerUnderTest) inBatches() (reading, []stream.Record, error) {
	_, all, err := p.whole()
	if err != nil {
		return reading{}, nil, err
	}
	req := p.request()
	req.MaxBatchRecords = uint32(max(p.Count/20, 2))
	r, err := p.from(req, 0, all)
	return r, all, err
}

func checkResumeAfterTokens(p ProducerUnderTest) error {
	r, all, err := p.inBatches()
	if err != nil {
		return err
	}
	for _, b := range r.batches {
		last := b.GetFirstSeq() + uint64(b.GetCount()) - 1
		for _, next := range []uint64{0, last + 1} { // a reader need not know
			req := p.request()
			req.After, req.NextSeq = b.GetToken(), next
			if _, err := p.from(req, last, all); err != nil {
				return fmt.Errorf("next_seq %d: %w", next, err)
			}
		}
	}
	return nil
}

// checkResumeInside: a commit may end within a batch. The reader then has the token of the batch before, and more records.
func checkResumeInside(p ProducerUnderTest) error {
	r, all, err := p.inBatches()
	if err != nil {
		return err
	}
	var token []byte // at first: the start
	for _, b := range r.batches {
		for seq := b.GetFirstSeq(); seq < b.GetFirstSeq()+uint64(b.GetCount()) && seq < b.GetFirstSeq()+3; seq++ {
			req := p.request()
			req.After, req.NextSeq = token, seq+1
			if _, err := p.from(req, seq, all); err != nil {
				return fmt.Errorf("with the position after record %d: %w", b.GetFirstSeq()-1, err)
			}
		}
		token = b.GetToken()
	}
	// And a position that is far behind.
	req := p.request()
	req.NextSeq = uint64(p.Count) // the last record
	_, err = p.from(req, uint64(p.Count-1), all)
	return err
}

func checkResumeAtEnd(p ProducerUnderTest) error {
	r, all, err := p.whole()
	if err != nil {
		return err
	}
	req := p.request()
	req.After, req.NextSeq = r.end.GetToken(), uint64(p.Count)+1
	_, err = p.from(req, uint64(p.Count), all)
	return err
}

// checkBatchCount: a batch has no more records than the reader takes.
func checkBatchCount(p ProducerUnderTest, all []stream.Record) error {
	for _, records := range []uint32{1, 3} {
		req := p.request()
		req.MaxBatchRecords = records
		r, err := p.from(req, 0, all)
		if err != nil {
			return err
		}
		for _, b := range r.batches {
			if b.GetCount() > records {
				return fmt.Errorf("the reader takes %d records in a batch, and %d came", records, b.GetCount())
			}
		}
	}
	return nil
}

func checkBatchLimits(p ProducerUnderTest) error {
	_, all, err := p.whole()
	if err != nil {
		return err
	}
	largest := 0
	for _, record := range all {
		largest = max(largest, len(record.Key)+len(record.Value)+len(record.Bad))
	}
	if err := checkBatchCount(p, all); err != nil {
		return err
	}
	// A quarter is for the records before the one that is just small enough.
	limit := uint32(largest+64)*4/3 + 64
	req := p.request()
	req.MaxBatchBytes = limit
	r, err := p.from(req, 0, all)
	if err != nil {
		return fmt.Errorf("with batches of at most %d bytes, in which each record fits: %w", limit, err)
	}
	for _, b := range r.batches {
		size := 0
		for _, record := range b.GetRecords() {
			size += len(record.GetKey()) + len(record.GetValue()) + len(record.GetBad())
		}
		if size > int(limit) {
			return fmt.Errorf("the reader takes %d bytes in a batch, and %d came", limit, size)
		}
	}
	return checkTooLarge(p, all)
}

// checkTooLarge: a record that is larger than the reader takes becomes a bad one, and the others come.
func checkTooLarge(p ProducerUnderTest, all []stream.Record) error {
	largest := all[0]
	for _, record := range all {
		if len(record.Value) > len(largest.Value) {
			largest = record
		}
	}
	req := p.request()
	req.MaxBatchBytes = uint32(len(largest.Key) + len(largest.Value)) // and there is more to a record than these
	r, err := p.read(context.Background(), req, 0, stream.Digest{}, nil)
	if err != nil {
		return fmt.Errorf("with batches of at most %d bytes: %w", req.MaxBatchBytes, err)
	}
	got := r.records()
	if len(got) != len(all) {
		return fmt.Errorf("with batches of at most %d bytes %d records came, and there are %d: one that is too large counts as a bad one", req.MaxBatchBytes, len(got), len(all))
	}
	if record := got[largest.Seq-1]; record.Bad == "" || len(record.Value) > 0 {
		return fmt.Errorf("the reader takes batches of %d bytes, and record %d, which has more, is not bad", req.MaxBatchBytes, largest.Seq)
	}
	return nil
}

// refused checks that a request is answered with an error of the protocol, and with nothing before it.
func (p ProducerUnderTest) refused(req *streamv1.ReadRequest, code codes.Code, reason stream.Reason) error {
	ctx, cancel := context.WithTimeout(context.Background(), producerPatience)
	defer cancel()
	in, err := streamv1.NewStreamClient(p.Conn).Read(ctx, req)
	if err == nil {
		var frame *streamv1.Frame
		if frame, err = in.Recv(); err == nil {
			return fmt.Errorf("%v came, and not %v %s", frame, code, reason)
		}
	}
	s := status.Convert(err)
	got := stream.Reason("")
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == "stream.levada.io" {
			got = stream.Reason(info.GetReason())
		}
	}
	if s.Code() != code || got != reason {
		return fmt.Errorf("the answer is %v %q with reason %q, and not %v with reason %q of the domain stream.levada.io", s.Code(), s.Message(), got, code, reason)
	}
	return nil
}

func checkUnknownStream(p ProducerUnderTest) error {
	req := p.request()
	req.Stream = "no stream of this producer has such a name"
	return p.refused(req, codes.NotFound, stream.ReasonUnknownStream)
}

// checkDamagedTokens: tokens lie in readers' databases for long. A damaged one that is not noticed is another position, and records are
// lost silently.
func checkDamagedTokens(p ProducerUnderTest) error {
	r, _, err := p.inBatches()
	if err != nil {
		return err
	}
	token := r.batches[len(r.batches)/2].GetToken()
	damaged := [][]byte{[]byte("x"), []byte("no token at all, but long enough to be one of them"), token[:len(token)-1], append(slices.Clone(token), 0)}
	for i := range token {
		b := slices.Clone(token)
		b[i] ^= 1 << (i % 8)
		damaged = append(damaged, b)
	}
	for _, b := range damaged {
		req := p.request()
		req.After = b
		if err := p.refused(req, codes.InvalidArgument, stream.ReasonBadToken); err != nil {
			return fmt.Errorf("token %x, which is %x damaged: %w", b, token, err)
		}
	}
	return nil
}

func checkForeignQuery(p ProducerUnderTest) error {
	r, _, err := p.whole()
	if err != nil {
		return err
	}
	req := p.request()
	req.Query = append(slices.Clone(p.Query), "and another"...)
	req.After = r.batches[0].GetToken()
	return p.refused(req, codes.FailedPrecondition, stream.ReasonQueryChanged)
}

func checkNumberBeforeToken(p ProducerUnderTest) error {
	r, _, err := p.whole()
	if err != nil {
		return err
	}
	first := r.batches[0]
	for _, next := range []uint64{1, uint64(first.GetCount())} {
		req := p.request()
		req.After, req.NextSeq = first.GetToken(), next
		if err := p.refused(req, codes.InvalidArgument, stream.ReasonBadToken); err != nil {
			return fmt.Errorf("record %d is asked for after a position that follows record %d: %w", next, first.GetCount(), err)
		}
	}
	return nil
}

func checkConcurrentReaders(p ProducerUnderTest) error {
	_, all, err := p.whole()
	if err != nil {
		return err
	}
	errs := make([]error, 8)
	var readers sync.WaitGroup
	for i := range errs {
		readers.Go(func() {
			req := p.request()
			req.MaxBatchRecords = uint32(1 + i*p.Count/8)
			_, errs[i] = p.from(req, 0, all)
		})
	}
	readers.Wait()
	return errors.Join(errs...)
}

// checkCancelledReaders: readers that leave in the middle must not use up what the producer has, such as threads.
func checkCancelledReaders(p ProducerUnderTest) error {
	for i := range 100 {
		req := p.request()
		if p.Waiting != "" {
			req.Stream = p.Waiting
		}
		_, err := p.read(context.Background(), req, 0, stream.Digest{}, func(r reading) bool { return len(r.batches) == i%2 })
		if err != nil {
			return fmt.Errorf("reader %d, after %d that left: %w", i, i, err)
		}
	}
	return checkWholeStream(p)
}

func checkMarks(p ProducerUnderTest) error {
	if p.Waiting == "" {
		return errNotGiven
	}
	req := p.request()
	req.Stream = p.Waiting
	var last reading
	r, err := p.read(context.Background(), req, 0, stream.Digest{}, func(r reading) bool { // the first one, and one after the records
		if last = r; len(r.batches) == 0 {
			return false
		}
		after := r.batches[len(r.batches)-1]
		return r.marks[len(r.marks)-1].GetNextSeq() == after.GetFirstSeq()+uint64(after.GetCount()) && len(r.records()) >= p.Count
	})
	if err != nil {
		return fmt.Errorf("%w (%d records and %d marks came)", err, len(last.records()), len(last.marks))
	}
	// The mark's token is a position, too.
	mark := r.marks[len(r.marks)-1]
	req.After, req.NextSeq = mark.GetToken(), mark.GetNextSeq()
	var digest stream.Digest
	for _, record := range r.records() {
		digest.Add(record)
	}
	_, err = p.read(context.Background(), req, mark.GetNextSeq()-1, digest, func(reading) bool { return true })
	return err
}

func checkDrain(p ProducerUnderTest) error {
	if p.Waiting == "" || p.Drain == nil {
		return errNotGiven
	}
	req := p.request()
	req.Stream = p.Waiting
	var once sync.Once
	r, err := p.read(context.Background(), req, 0, stream.Digest{}, func(r reading) bool {
		if len(r.records()) >= p.Count {
			once.Do(p.Drain)
		}
		return false
	})
	switch {
	case err != nil:
		return fmt.Errorf("a stream that is open while the producer is told to shut down: %w", err)
	case r.drain == nil:
		return errors.New("a stream that was open while the producer was told to shut down ended with End")
	case r.drain.GetReason() != "shutdown":
		return fmt.Errorf("the Drain of a shutdown says %q, and not %q", r.drain.GetReason(), "shutdown")
	}
	// The producer refuses new streams, or is gone. Some gRPC servers answer CANCELLED at the moment that they stop.
	ctx, cancel := context.WithTimeout(context.Background(), producerPatience)
	defer cancel()
	in, err := streamv1.NewStreamClient(p.Conn).Read(ctx, p.request())
	if err == nil {
		_, err = in.Recv()
	}
	if err == nil || stream.Classify(err).Fatal {
		return fmt.Errorf("a stream that is opened during the shutdown ends with %v: it must be refused, with a status that readers do not take for final", err)
	}
	return nil
}
