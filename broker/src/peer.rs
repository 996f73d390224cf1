//! A broker of a few lines, for tests: it says what it is told to, and shows what it was asked for.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// One connection of a client.
pub struct Peer(TcpStream);

impl Peer {
    /// Where clients are waited for, and the address that leads there.
    pub fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("amqp://u:p@{}/", listener.local_addr().unwrap());
        (listener, uri)
    }

    /// The next client, which has said what it speaks.
    pub fn accept(listener: &TcpListener) -> Self {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 8]).unwrap();
        Self(stream)
    }

    /// Opens the connection with an offer of frames, and says how large a frame was asked for.
    pub fn greet(&mut self, frame_max: u32) -> u32 {
        let start = [&[0, 9, 0, 0, 0, 0][..], b"\0\0\0\x05PLAIN\0\0\0\x05en_US"].concat();
        self.say(&method(10, 10, &start));
        self.heard();
        self.say(&method(10, 30, &[&[7, 255][..], &frame_max.to_be_bytes(), &[0, 60]].concat()));
        let tuned = self.heard();
        self.heard();
        self.say(&method(10, 41, &[0]));
        u32::from_be_bytes(tuned[6..10].try_into().unwrap())
    }

    /// Ends the connection, with a reason.
    pub fn close(mut self, code: u16, text: &str) {
        let text = [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        self.say(&method(10, 50, &[&code.to_be_bytes()[..], &text, &[0; 4]].concat()));
        // Closed with something unread, the connection would be reset, and the reason lost.
        self.listen_on();
    }

    /// Says nothing more, and listens until the client hangs up.
    pub fn listen_on(mut self) {
        let _ = self.0.read_to_end(&mut Vec::new());
    }

    /// Sends bytes, while the client listens.
    pub fn try_say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }

    fn say(&mut self, bytes: &[u8]) {
        self.try_say(bytes).unwrap();
    }

    /// The payload of the client's next frame.
    fn heard(&mut self) -> Vec<u8> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).unwrap();
        let size = u32::from_be_bytes(head[3..].try_into().unwrap()) as usize;
        let mut payload = vec![0; size + 1];
        self.0.read_exact(&mut payload).unwrap();
        payload.truncate(size);
        payload
    }
}

/// The frame of a method on the connection itself.
pub fn method(class: u16, number: u16, arguments: &[u8]) -> Vec<u8> {
    let payload = [&class.to_be_bytes()[..], &number.to_be_bytes(), arguments].concat();
    let size = u32::try_from(payload.len()).unwrap();
    [&[1, 0, 0][..], &size.to_be_bytes(), &payload, &[0xce]].concat()
}
