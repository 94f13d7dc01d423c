package proxy

import "sync"

// queue holds bytes that cannot be sent on yet, in pieces of memory that are used again and again. The zero value is empty.
type queue struct {
	first, last *piece
	size        int
}

// piece is a part of a queue.
type piece struct {
	next *piece
	b    []byte // memory
	r, w int    // b[r:w] is in the queue
}

const (
	smallPiece  = 1 << 10
	mediumPiece = 4 << 10
	largePiece  = 16 << 10
)

var (
	smallPieces  = sync.Pool{New: func() any { return &piece{b: make([]byte, smallPiece)} }}
	mediumPieces = sync.Pool{New: func() any { return &piece{b: make([]byte, mediumPiece)} }}
	largePieces  = sync.Pool{New: func() any { return &piece{b: make([]byte, largePiece)} }}
)

func (q *queue) append(p []byte) {
	for q.size += len(p); len(p) > 0; {
		if q.last == nil || q.last.w == len(q.last.b) {
			// What a stream keeps takes at most four times its size: there are many streams that keep little.
			pool := &largePieces
			if q.size <= smallPiece {
				pool = &smallPieces
			} else if q.size <= mediumPiece {
				pool = &mediumPieces
			}
			next := pool.Get().(*piece)
			if q.last == nil {
				q.first = next
			} else {
				q.last.next = next
			}
			q.last = next
		}
		n := copy(q.last.b[q.last.w:], p)
		q.last.w += n
		p = p[n:]
	}
}

// front returns the first bytes, as many as lie together. The queue is not empty.
func (q *queue) front() []byte { return q.first.b[q.first.r:q.first.w] }

// skip takes n bytes of front away.
func (q *queue) skip(n int) {
	q.size -= n
	if q.first.r += n; q.first.r == q.first.w {
		done := q.first
		if q.first = done.next; q.first == nil {
			q.last = nil
		}
		done.release()
	}
}

func (p *piece) release() {
	p.next, p.r, p.w = nil, 0, 0
	switch len(p.b) {
	case smallPiece:
		smallPieces.Put(p)
	case mediumPiece:
		mediumPieces.Put(p)
	default:
		largePieces.Put(p)
	}
}

// take moves all of another queue to the end of this one.
func (q *queue) take(other *queue) {
	if other.size == 0 {
		return
	}
	if q.last == nil {
		q.first = other.first
	} else {
		q.last.next = other.first
	}
	q.last = other.last
	q.size += other.size
	*other = queue{}
}

func (q *queue) clear() {
	for p := q.first; p != nil; {
		next := p.next
		p.release()
		p = next
	}
	*q = queue{}
}
