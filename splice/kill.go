package splice

// HalfClosed reports whether one side has closed its direction by FIN. It may be called from any goroutine.
func (p *Pair) HalfClosed() bool { return p.halfClosed.Load() }

// Kill resets both sockets. It may be called from any goroutine and does not wait: the loop ends the pair in its next
// handler run and then calls onEnd. It does nothing for a pair that has ended.
func (p *Pair) Kill() {
	l := p.loop
	l.mu.Lock()
	l.killed = append(l.killed, p)
	l.killing.Store(true)
	l.mu.Unlock()
	l.member.Wake()
}

// endKilled resets the pairs that Kill was called for. It belongs to the handler run.
func (l *Loop) endKilled() {
	if !l.killing.Swap(false) {
		return
	}
	l.mu.Lock()
	killed := l.killed
	l.killed = nil
	l.mu.Unlock()
	for _, p := range killed {
		if !p.ended {
			p.abort()
		}
	}
}
